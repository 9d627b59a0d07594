"""BLIP as ImageReward has it: a BERT that reads the prompt and looks at the picture."""
