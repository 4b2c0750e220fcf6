"""What the electrons do: crystals, how their atoms shake, the beam, the detector, and images of sheets."""
