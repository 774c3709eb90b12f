"""What runs on the device: pure functions of arrays. Read `kv_state`, `blocks`, `attention`, `decode`."""
