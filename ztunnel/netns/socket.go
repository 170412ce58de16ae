package netns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errElsewhere is why a socket was refused that the net package made on another thread, or after the first: it would be of
// the wrong namespace.
var errElsewhere = errors.New("socket was made outside the network namespace")

// Dialer connects from a namespace. The zero value is ready to use.
type Dialer struct {
	// Mark is put on all packets of the connection (SO_MARK). Zero means none.
	Mark int
	// Source is bound to before connecting. Zero means the kernel's choice; a zero port too.
	Source netip.AddrPort
	// Transparent allows Source to be an address that the namespace does not have (IP_TRANSPARENT), and a Source with a port
	// to be used again while an earlier connection with the same four addresses is in TIME_WAIT.
	Transparent bool
	// KeepAlive is as in net.Dialer.
	KeepAlive net.KeepAliveConfig
	// UserTimeout in milliseconds bounds how long sent bytes may stay unacknowledged (TCP_USER_TIMEOUT). Zero: no bound.
	UserTimeout int
}

// DialTCP connects from the namespace to dst. The context bounds it; its end afterwards has no effect.
func (n *Namespace) DialTCP(ctx context.Context, d Dialer, dst netip.AddrPort) (*net.TCPConn, error) {
	// One retry: the net package itself repeats a dial in which the kernel connected a socket to itself or chose a source
	// address that was taken, and such a second socket is refused here.
	conn, err := n.dialOnce(ctx, d, dst)
	if errors.Is(err, errElsewhere) {
		conn, err = n.dialOnce(ctx, d, dst)
	}
	return conn, err
}

func (n *Namespace) dialOnce(ctx context.Context, d Dialer, dst netip.AddrPort) (*net.TCPConn, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	stay, err := n.enter()
	if err != nil {
		return nil, err
	}
	ipv6 := dst.Addr().Is6()
	dialer := net.Dialer{KeepAliveConfig: d.KeepAlive}
	if !d.KeepAlive.Enable {
		dialer.KeepAlive = -1
	}
	dialer.SetMultipathTCP(false)
	// The net package makes the socket and calls Control, both in this goroutine: so the thread goes home before anything
	// waits. Control connects too: within a pod that is done when connect returns, though it says that it is in progress,
	// and then the net package's own connect finds it done, instead of waiting for the poller to say so.
	var failed error
	dialer.Control = func(_, _ string, c syscall.RawConn) error {
		if !stay.away || unix.Gettid() != stay.thread {
			return errElsewhere
		}
		if err := stay.leave(); err != nil {
			return err
		}
		failed = control(c, func(fd int) error {
			if err := d.setOptions(fd, ipv6); err != nil {
				return err
			}
			return connect(fd, d.Source, dst)
		})
		return failed
	}
	network := "tcp4"
	if ipv6 {
		network = "tcp6"
	}
	conn, err := dialer.DialContext(ctx, network, dst.String())
	if err := stay.leave(); err != nil {
		if conn != nil {
			conn.Close()
		}
		return nil, err
	}
	switch {
	case err == nil:
		return conn.(*net.TCPConn), nil
	case failed != nil && errors.Is(err, errElsewhere):
		return nil, failed // what made the net package try again
	}
	return nil, err
}

// connect binds a socket, if source is not zero, and begins to connect it.
func connect(fd int, source, dst netip.AddrPort) error {
	if source.IsValid() {
		if err := unix.Bind(fd, sockaddr(source)); err != nil {
			return os.NewSyscallError("bind", err)
		}
	}
	switch err := unix.Connect(fd, sockaddr(dst)); err {
	case nil, unix.EINPROGRESS, unix.EINTR:
		return nil
	default:
		return os.NewSyscallError("connect", err)
	}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func (d Dialer) setOptions(fd int, ipv6 bool) error {
	if d.Mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, d.Mark); err != nil {
			return fmt.Errorf("set SO_MARK: %w", err)
		}
	}
	if d.Source.Port() == 0 {
		// Without it, binding to an address takes a port away from all other destinations.
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return fmt.Errorf("set IP_BIND_ADDRESS_NO_PORT: %w", err)
		}
	}
	if d.Transparent {
		level, option, name := unix.SOL_IP, unix.IP_TRANSPARENT, "IP_TRANSPARENT"
		if ipv6 {
			level, option, name = unix.SOL_IPV6, unix.IPV6_TRANSPARENT, "IPV6_TRANSPARENT"
		}
		if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
		// With it the same address and port may be bound for several destinations, and the kernel takes over the four
		// addresses of a connection in TIME_WAIT (with TCP timestamps), whatever tcp_tw_reuse says: it does so for sockets
		// that were bound to a port.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fmt.Errorf("set SO_REUSEADDR: %w", err)
		}
	}
	if d.UserTimeout > 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_USER_TIMEOUT, d.UserTimeout); err != nil {
			return fmt.Errorf("set TCP_USER_TIMEOUT: %w", err)
		}
	}
	return nil
}

// Listener makes listening sockets in a namespace.
type Listener struct {
	// Mark is put on all packets of accepted connections (SO_MARK). Zero means none.
	Mark int
	// IPv4Only leaves IPv6 out even where the namespace has it.
	IPv4Only bool
	// Shared lets several processes listen on the same port (SO_REUSEPORT), of which the newest gets all new connections.
	Shared bool
	// KeepAlive is that of accepted connections. What is not above zero stays as the system has it.
	KeepAlive net.KeepAliveConfig
}

// ListenTCP listens on port, on all addresses of the namespace. The backlog is the system's largest (somaxconn).
func (n *Namespace) ListenTCP(l Listener, port uint16) (*net.TCPListener, error) {
	if !l.IPv4Only {
		ln, err := n.listen(l, "tcp", netip.AddrPortFrom(netip.IPv6Unspecified(), port))
		if err == nil {
			return ln, nil
		}
		// A kernel or namespace without IPv6.
		if !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil, err
		}
	}
	return n.listen(l, "tcp4", netip.AddrPortFrom(netip.IPv4Unspecified(), port))
}

func (n *Namespace) listen(l Listener, network string, addr netip.AddrPort) (*net.TCPListener, error) {
	// Accepted connections inherit their keepalive, so that it is not set for each.
	lc := net.ListenConfig{KeepAlive: -1}
	lc.SetMultipathTCP(false)
	lc.Control = func(_, _ string, c syscall.RawConn) error {
		return control(c, func(fd int) error {
			if err := l.setOptions(fd); err != nil {
				return err
			}
			return setKeepAlive(fd, l.KeepAlive)
		})
	}
	var ln net.Listener
	err := n.Do(func() error {
		var err error
		ln, err = lc.Listen(context.Background(), network, addr.String())
		return err
	})
	if err != nil {
		if ln != nil {
			ln.Close()
		}
		return nil, err
	}
	tcp := ln.(*net.TCPListener)
	if l.Shared {
		if err := preferNewest(tcp); err != nil {
			tcp.Close()
			return nil, err
		}
	}
	return tcp, nil
}

// setOptions sets what sockets of TCP and UDP have in common.
func (l Listener) setOptions(fd int) error {
	if l.Mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, l.Mark); err != nil {
			return fmt.Errorf("set SO_MARK: %w", err)
		}
	}
	if l.Shared {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return fmt.Errorf("set SO_REUSEPORT: %w", err)
		}
	}
	return nil
}

// setKeepAlive is net.TCPConn.SetKeepAliveConfig for a socket that is no connection yet.
func setKeepAlive(fd int, k net.KeepAliveConfig) error {
	if !k.Enable {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1); err != nil {
		return fmt.Errorf("set SO_KEEPALIVE: %w", err)
	}
	for _, o := range []struct {
		option, value int
		name          string
	}{
		{unix.TCP_KEEPIDLE, seconds(k.Idle), "TCP_KEEPIDLE"},
		{unix.TCP_KEEPINTVL, seconds(k.Interval), "TCP_KEEPINTVL"},
		{unix.TCP_KEEPCNT, k.Count, "TCP_KEEPCNT"},
	} {
		if o.value <= 0 {
			continue // the system's
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_TCP, o.option, o.value); err != nil {
			return fmt.Errorf("set %s: %w", o.name, err)
		}
	}
	return nil
}

// seconds rounds up.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// Listening tells whether a process listens on a port of the namespace.
func (n *Namespace) Listening(port uint16) (bool, error) {
	var fd int
	err := n.Do(func() error {
		var err error
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("look for a listener on port %d: %w", port, err)
	}
	defer unix.Close(fd)
	// With SO_REUSEADDR only a listener is in the way of a bind. The socket does not listen, so it takes nothing from anyone.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return false, fmt.Errorf("look for a listener on port %d: %w", port, err)
	}
	err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)})
	if err == nil || errors.Is(err, unix.EADDRINUSE) {
		return err != nil, nil
	}
	return false, fmt.Errorf("look for a listener on port %d: %w", port, err)
}

// preferNewest makes the kernel give all new connections to the newest socket of a group that shares a port. While an old
// process waits for its connections to end, the new one takes over; nothing is then left in the old one's accept queue
// when it closes, which would be reset. The program, shared by the group, names the socket with index 1: indices are given
// in order of joining. With one socket there is no such index, and the kernel falls back to choosing by hash.
func preferNewest(ln syscall.Conn) error {
	rc, err := ln.SyscallConn()
	if err != nil {
		return err
	}
	return control(rc, func(fd int) error {
		program := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 1}}
		err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
		if err != nil {
			return fmt.Errorf("set SO_ATTACH_REUSEPORT_CBPF: %w", err)
		}
		return nil
	})
}

// control calls f with the descriptor of a connection.
func control(c syscall.RawConn, f func(fd int) error) error {
	var inner error
	if err := c.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// OriginalDst returns where a connection was going before it was redirected here; if it was not, its local address.
func OriginalDst(conn *net.TCPConn) (netip.AddrPort, error) {
	rc, err := conn.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	local := AddrPort(conn.LocalAddr())
	var dst netip.AddrPort
	err = control(rc, func(fd int) error {
		var err error
		dst, err = originalDst(fd, local.Addr().Is4())
		return err
	})
	// No entry: connection tracking does not know the connection, so it was not redirected.
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOPROTOOPT) {
		return local, nil
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("get original destination: %w", err)
	}
	return dst, nil
}

// soOriginalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST of the kernel's netfilter headers.
const soOriginalDst = 80

func originalDst(fd int, ipv4 bool) (netip.AddrPort, error) {
	if ipv4 {
		// A sockaddr_in has the size of an ipv6_mreq, which x/sys knows how to get: family, port, address, zeroes.
		raw, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, soOriginalDst)
		if err != nil {
			return netip.AddrPort{}, err
		}
		b := raw.Multiaddr
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3])), nil
	}
	// An ip6_mtuinfo begins with a sockaddr_in6.
	raw, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}, err
	}
	var port [2]byte // in network byte order, whatever the machine's
	binary.NativeEndian.PutUint16(port[:], raw.Addr.Port)
	return netip.AddrPortFrom(netip.AddrFrom16(raw.Addr.Addr), binary.BigEndian.Uint16(port[:])), nil
}

// AddrPort is the IP address and port of a TCP address, never an IPv4-mapped one and without zone.
func AddrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
