"""Pure tensor functions of the reinforcement-learning maths; nothing here touches disk or models."""
