"""Statistics of what was measured; reads tables of numbers only."""
