// Package netns makes sockets in other network namespaces. A socket belongs for all its life to the namespace in which it
// was made, so only that one moment happens there: the calling thread enters, makes the socket, and returns.
//
// Rules of the room: no goroutine starts and nothing waits while a thread is away. A thread that cannot come back is
// never used for anything else.
package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNotNetNS is wrapped by Home.Namespace for a descriptor of something else.
var ErrNotNetNS = errors.New("not a network namespace")

// Home is the network namespace that the process lives in. Its methods may be called concurrently.
type Home struct {
	file *os.File
}

// OpenHome returns the network namespace of the calling thread, which must be the process's. The caller closes it after
// every Namespace that it made.
func OpenHome() (*Home, error) {
	// Go's net package finds out once, at its first use, which address families there are. That must not happen in a pod.
	if _, err := net.Interfaces(); err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	if ln, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		ln.Close()
	}
	file, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	return &Home{file: file}, nil
}

// Close releases the descriptor.
func (h *Home) Close() error { return h.file.Close() }

// ID tells network namespaces apart: device and inode of their file. It is comparable.
type ID struct{ Dev, Ino uint64 }

func (id ID) String() string { return fmt.Sprintf("%d:%d", id.Dev, id.Ino) }

// Namespace is a handle on another network namespace, which lives at least as long as the handle is open. Its methods may
// be called concurrently; after Close they return an error that wraps os.ErrClosed.
type Namespace struct {
	home *Home
	file *os.File
	id   ID
}

// Namespace takes over fd, a descriptor of a network namespace, and closes it also on error.
func (h *Home) Namespace(fd int) (*Namespace, error) {
	file := os.NewFile(uintptr(fd), "netns")
	if file == nil {
		return nil, fmt.Errorf("network namespace: descriptor %d: %w", fd, unix.EBADF)
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		file.Close()
		return nil, fmt.Errorf("descriptor %d: %w", fd, ErrNotNetNS)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		file.Close()
		return nil, fmt.Errorf("network namespace: stat descriptor %d: %w", fd, err)
	}
	return &Namespace{home: h, file: file, id: ID{Dev: st.Dev, Ino: st.Ino}}, nil
}

// ID identifies the namespace.
func (n *Namespace) ID() ID { return n.id }

// Close releases the handle. Sockets that were made stay as they are.
func (n *Namespace) Close() error { return n.file.Close() }

// Do calls f on a thread that is in the namespace. f must neither wait nor start goroutines.
func (n *Namespace) Do(f func() error) error {
	enter, err := n.enter()
	if err != nil {
		return err
	}
	err = f()
	return errors.Join(err, enter.leave())
}

// visit is the stay of a thread in a namespace.
type visit struct {
	home   *Home
	thread int
	away   bool
}

// enter locks the calling goroutine to its thread and takes that into the namespace. Unless it fails, leave must follow.
func (n *Namespace) enter() (*visit, error) {
	rc, err := n.file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("enter network namespace %s: %w", n.id, err)
	}
	runtime.LockOSThread()
	var setns error
	if err := rc.Control(func(fd uintptr) { setns = unix.Setns(int(fd), unix.CLONE_NEWNET) }); err != nil {
		setns = os.ErrClosed // the only error that Control has
	}
	if setns != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("enter network namespace %s: %w", n.id, setns)
	}
	return &visit{home: n.home, thread: unix.Gettid(), away: true}, nil
}

// leave brings the thread home; a second call does nothing. If it fails, the goroutine stays locked to the thread, which
// ends with it.
func (v *visit) leave() error {
	if !v.away {
		return nil
	}
	v.away = false
	if err := unix.Setns(int(v.home.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("return from network namespace: %w", err)
	}
	runtime.UnlockOSThread()
	return nil
}

// Alive tells whether the namespace still has a network interface other than loopback. A pod's loses its own when the pod
// is taken down, while our handle keeps the namespace itself.
func (n *Namespace) Alive() (bool, error) {
	alive := false
	err := n.Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			if l.Flags&net.FlagLoopback == 0 {
				alive = true
			}
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("look for interfaces: %w", err)
	}
	return alive, nil
}

// Addrs returns the addresses of the namespace's interfaces, loopback's included.
func (n *Namespace) Addrs() ([]netip.Addr, error) {
	var found []netip.Addr
	err := n.Do(func() error {
		addrs, err := net.InterfaceAddrs()
		for _, a := range addrs {
			if ipnet, ok := a.(*net.IPNet); ok {
				if addr, ok := netip.AddrFromSlice(ipnet.IP); ok {
					found = append(found, addr.Unmap())
				}
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return found, nil
}

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last uint16 }

// LocalPorts is what the kernel does with source ports in a namespace.
type LocalPorts struct {
	// Ephemeral is where it takes ports from for connections that are not bound (ip_local_port_range).
	Ephemeral PortRange
	// Reserved are those that it never takes (ip_local_reserved_ports).
	Reserved []PortRange
}

// Paths of the settings, which are those of the reading thread's namespace.
const (
	portRangePath     = "/proc/sys/net/ipv4/ip_local_port_range"
	reservedPortsPath = "/proc/sys/net/ipv4/ip_local_reserved_ports"
)

// LocalPorts reads the namespace's settings. They hold for IPv6 too.
func (n *Namespace) LocalPorts() (LocalPorts, error) {
	var ephemeral, reserved []byte
	err := n.Do(func() error {
		var errRange, errReserved error
		ephemeral, errRange = os.ReadFile(portRangePath)
		reserved, errReserved = os.ReadFile(reservedPortsPath)
		return errors.Join(errRange, errReserved)
	})
	if err != nil {
		return LocalPorts{}, fmt.Errorf("read local ports: %w", err)
	}
	return parseLocalPorts(string(ephemeral), string(reserved))
}

func parseLocalPorts(ephemeral, reserved string) (LocalPorts, error) {
	var p LocalPorts
	fields := strings.Fields(ephemeral)
	if len(fields) != 2 {
		return p, fmt.Errorf("%s: %q is not two numbers", portRangePath, ephemeral)
	}
	var err error
	if p.Ephemeral, err = parsePortRange(fields[0] + "-" + fields[1]); err != nil {
		return p, fmt.Errorf("%s: %w", portRangePath, err)
	}
	for item := range strings.SplitSeq(strings.TrimSpace(reserved), ",") {
		if item == "" {
			continue
		}
		r, err := parsePortRange(item)
		if err != nil {
			return p, fmt.Errorf("%s: %w", reservedPortsPath, err)
		}
		p.Reserved = append(p.Reserved, r)
	}
	return p, nil
}

// parsePortRange reads "first-last" or a single port.
func parsePortRange(s string) (PortRange, error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	a, err := strconv.ParseUint(first, 10, 16)
	if err != nil {
		return PortRange{}, err
	}
	b, err := strconv.ParseUint(last, 10, 16)
	if err != nil {
		return PortRange{}, err
	}
	if b < a {
		return PortRange{}, fmt.Errorf("range %q is empty", s)
	}
	return PortRange{First: uint16(a), Last: uint16(b)}, nil
}
