//go:build !race

package nowait

// written and seen tell the race detector what the kernel does.
func written([]byte) {}

func seen([]byte) {}
