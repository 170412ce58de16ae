//go:build race

package nowait

import (
	"runtime"
	"unsafe"
)

// written tells the race detector that the kernel has written p. Unlike package syscall it orders nothing: what is read from one
// descriptor would seem to come after all that was written to any.
func written(p []byte) {
	if len(p) > 0 {
		runtime.RaceWriteRange(unsafe.Pointer(&p[0]), len(p))
	}
}

// seen tells it that the kernel reads p.
func seen(p []byte) {
	if len(p) > 0 {
		runtime.RaceReadRange(unsafe.Pointer(&p[0]), len(p))
	}
}
