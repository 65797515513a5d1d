"""Images to codes: image sets and their crops, the tokenizer's training, extraction, and the code store."""
