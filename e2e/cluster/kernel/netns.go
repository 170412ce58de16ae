package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// NetNSDir is where iproute2 keeps the names of network namespaces (ip-netns(8)); ours are there too, so that
// `ip netns exec` works on them.
const NetNSDir = "/run/netns"

// MakeNetNS makes a network namespace of that name with loopback down. The name must be free.
//
// Unlike ip-netns(8) it does not turn NetNSDir into a mount of its own, which nobody would take away again.
func MakeNetNS(name string) error {
	path := filepath.Join(NetNSDir, name)
	if err := os.MkdirAll(NetNSDir, 0o755); err != nil {
		return fmt.Errorf("make netns %s: %w", name, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("make netns %s: %w", name, err)
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	if err != nil {
		os.Remove(path)
		return fmt.Errorf("make netns %s: %w", name, err)
	}
	return nil
}

// InNetNS runs f on a thread that is in the named network namespace. Sockets that f makes and processes that it starts
// belong to that namespace. f must not start goroutines that expect to be there.
func InNetNS(name string, f func() error) error {
	ns, err := os.Open(filepath.Join(NetNSDir, name))
	if err != nil {
		return fmt.Errorf("enter netns %s: %w", name, err)
	}
	defer ns.Close()
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter netns %s: %w", name, err)
		}
		return f()
	})
}

// onThread runs f on an operating system thread that is thrown away afterwards, so that whatever f does to its
// thread's namespaces reaches nobody else.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

// RemoveNetNS takes the name away. The namespace itself ends with its last process. A name that is not there is no
// error.
func RemoveNetNS(name string) error {
	path := filepath.Join(NetNSDir, name)
	for {
		// A run that was cut off and another that began may have mounted twice on the same name.
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("remove netns %s: %w", name, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove netns %s: %w", name, err)
	}
	return nil
}

// netNSInode returns the identity of the namespace behind the name, and false if the name is an empty file.
func netNSInode(name string) (uint64, bool) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	path := filepath.Join(NetNSDir, name)
	if unix.Statfs(path, &fs) != nil || fs.Type != unix.NSFS_MAGIC || unix.Stat(path, &st) != nil {
		return 0, false
	}
	return st.Ino, true
}
