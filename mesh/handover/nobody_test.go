package handover

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// asNobody calls f on a thread whose user is nobody, and which is never used again.
func asNobody(f func() error) error {
	const nobody = 65534
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			done <- errno
			return
		}
		done <- f()
	}()
	return <-done
}
