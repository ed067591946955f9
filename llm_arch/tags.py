"""Tags a word, such as B-person, and the entities that a row of them spells."""
