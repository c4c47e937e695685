"""GPT-J, the language model, cut over the replicas of a tensor-parallel group."""
