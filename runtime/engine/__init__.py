"""Token ids to logits: sessions, contexts, the state of each layer, batches; knows no text."""
