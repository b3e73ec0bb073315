"""The protocol without its transport: headers, keys, envelopes, split models and their files."""
