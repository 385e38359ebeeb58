"""Use cases behind ``topoviz``, ``topoeval`` and ``topoassign``: read a fabric, place or measure, write."""
