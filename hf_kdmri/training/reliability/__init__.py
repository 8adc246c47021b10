"""What keeps a run safe: whole checkpoints, stops on request, numbers that go wrong, data workers that die."""
