"""What Spin applications bring along, and how refllm meets them."""
