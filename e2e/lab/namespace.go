package lab

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const ifaNoDAD = unix.IFA_F_NODAD

// namespaces is where `ip netns` finds them too, so that a person can look inside.
const namespaces = "/run/netns"

// Namespace is a network namespace with a name.
type Namespace struct {
	// Path is a file that keeps the namespace alive; `ip netns exec` takes its base name.
	Path   string
	handle ns.NetNS
}

func newNamespace(f Family) (*Namespace, error) {
	if err := os.MkdirAll(namespaces, 0o755); err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	var id [6]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	owner, err := process(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	n := &Namespace{Path: filepath.Join(namespaces, prefix+owner+"-"+hex.EncodeToString(id[:]))}
	if err := os.WriteFile(n.Path, nil, 0o444); err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	made := make(chan error)
	go func() { // the locked thread ends with this goroutine, so nothing else ever runs in the namespace
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- err
			return
		}
		made <- unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), n.Path, "", unix.MS_BIND, "")
	}()
	err = <-made
	if err == nil {
		n.handle, err = ns.GetNS(n.Path)
	}
	if err == nil {
		err = n.Do(func() error {
			if f == IPv4 {
				if err := withoutIPv6(); err != nil {
					return err
				}
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.LinkSetUp(lo)
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make network namespace: %w", err), n.close())
	}
	return n, nil
}

// withoutIPv6 turns IPv6 off in the current namespace, for links that come later too.
func withoutIPv6() error {
	for _, which := range []string{"all", "default"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", []byte("1"), 0o644)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without it
			return fmt.Errorf("turn IPv6 off: %w", err)
		}
	}
	return nil
}

func (n *Namespace) close() error {
	var err error
	if n.handle != nil {
		err = n.handle.Close()
		n.handle = nil
	}
	if e := unix.Unmount(n.Path, unix.MNT_DETACH); e != nil && !errors.Is(e, unix.EINVAL) && !errors.Is(e, unix.ENOENT) {
		err = errors.Join(err, fmt.Errorf("unmount %s: %w", n.Path, e))
	}
	if e := os.Remove(n.Path); e != nil && !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// Do runs f inside the namespace, on one locked thread. f must not start goroutines that rely on it.
func (n *Namespace) Do(f func() error) error {
	return n.handle.Do(func(ns.NetNS) error { return f() })
}

// Listen opens a TCP listener inside the namespace. The caller closes it.
func (n *Namespace) Listen(addr string) (net.Listener, error) {
	var ln net.Listener
	err := n.Do(func() (err error) {
		ln, err = net.Listen("tcp", addr)
		return err
	})
	return ln, err
}

// Dial opens a TCP connection from inside the namespace to an address (no name: a look-up would leave the thread). The
// caller closes it.
func (n *Namespace) Dial(addr string) (*net.TCPConn, error) {
	var conn net.Conn
	err := n.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", addr, dialTimeout)
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// Start starts a command inside the namespace. It is killed when this process ends, however that happens.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	// A parent-death signal comes when the thread ends that started the child, so that thread must live as long as the
	// process: the lab keeps one for it.
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread waits with the child, and ends with this goroutine
		if err := n.handle.Set(); err != nil {
			started <- err
			return
		}
		err := cmd.Start()
		started <- err
		if err == nil {
			waitGone(cmd.Process.Pid)
		}
	}()
	return <-started
}

// waitGone returns once the child of that id has ended; it leaves the reaping to whoever owns the command.
func waitGone(pid int) {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// process names a process by its id and start time, "PID-TICKS", so that a later one with the same id is another.
func process(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// Fields count from behind the command name, which may hold blanks: the start time is field 22.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	return fmt.Sprintf("%d-%s", pid, fields[19]), nil
}

// Clear removes the namespaces of labs whose process is gone: it was cut off before it could close them.
func Clear() error {
	entries, err := os.ReadDir(namespaces)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clear labs: %w", err)
	}
	var errs []error
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(name, "%d-", &pid); err == nil {
			if owner, err := process(pid); err == nil && strings.HasPrefix(name, owner+"-") {
				continue
			}
		}
		errs = append(errs, (&Namespace{Path: filepath.Join(namespaces, e.Name())}).close())
	}
	return errors.Join(errs...)
}
