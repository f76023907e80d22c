"""Test restores: a backup is proven by bringing it back."""
