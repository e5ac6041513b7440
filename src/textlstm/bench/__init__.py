"""Measurements that users can repeat on their machine."""
