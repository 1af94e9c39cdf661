"""Synthetic echocardiograms with known truth: hearts, views and fans as frames; numpy alone, deterministic by seed."""
