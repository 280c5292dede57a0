"""The mesh's test kit: embedded stores, a node runner, a fault proxy, checkers, and the demo that shows them at work."""
