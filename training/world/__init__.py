"""A made world: pictures of emoji in scenes, with captions, questions and facts about them."""
