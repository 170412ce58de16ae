package handover

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// NetNS tells network namespaces apart: device and inode of their file.
type NetNS struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

func (n NetNS) String() string { return fmt.Sprintf("%d:%d", n.Dev, n.Ino) }

// Networks of a Name.
const (
	TCP = "tcp" // a listening socket
	UDP = "udp" // a socket that is bound and not connected
)

// Name tells the sockets of one network namespace apart. It is comparable.
type Name struct {
	Network string         `json:"network"` // TCP or UDP
	Addr    netip.AddrPort `json:"addr"`    // that it is bound to, without zone
}

func (n Name) String() string { return n.Network + " " + n.Addr.String() }

func (n Name) compare(o Name) int {
	return cmp.Or(strings.Compare(n.Network, o.Network), n.Addr.Compare(o.Addr))
}

// Socket is a descriptor and what it is. Its owner closes it, once.
type Socket struct {
	Name Name
	FD   int
}

// Close closes the descriptor. The socket lives on in other processes that hold it.
func (s Socket) Close() { unix.Close(s.FD) }

// Listener makes a listener of a TCP socket, and takes over the descriptor, also on error. Connections that it accepts have
// Go's default keepalive.
func (s Socket) Listener() (*net.TCPListener, error) {
	file := os.NewFile(uintptr(s.FD), s.Name.String())
	defer file.Close()
	ln, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("take over %s: %w", s.Name, err)
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		ln.Close()
		return nil, fmt.Errorf("take over %s: it is a %T", s.Name, ln)
	}
	return tcp, nil
}

// PacketConn makes a connection of a UDP socket, and takes over the descriptor, also on error.
func (s Socket) PacketConn() (*net.UDPConn, error) {
	file := os.NewFile(uintptr(s.FD), s.Name.String())
	defer file.Close()
	pc, err := net.FilePacketConn(file)
	if err != nil {
		return nil, fmt.Errorf("take over %s: %w", s.Name, err)
	}
	udp, ok := pc.(*net.UDPConn)
	if !ok {
		pc.Close()
		return nil, fmt.Errorf("take over %s: it is a %T", s.Name, pc)
	}
	return udp, nil
}

// errKind is why a descriptor is not passed on.
var errKind = errors.New("neither a listening TCP socket nor an unconnected UDP socket")

// Inspect asks the kernel what a descriptor is. It needs CAP_NET_ADMIN in the socket's namespace.
func Inspect(fd int) (NetNS, Name, error) {
	name, err := nameOf(fd)
	if err != nil {
		return NetNS{}, Name{}, fmt.Errorf("inspect descriptor %d: %w", fd, err)
	}
	ns, err := netnsOf(fd)
	if err != nil {
		return NetNS{}, Name{}, fmt.Errorf("inspect descriptor %d: network namespace of %s: %w", fd, name, err)
	}
	return ns, name, nil
}

func nameOf(fd int) (Name, error) {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return Name{}, err
	}
	var name Name
	switch protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_MPTCP:
		listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if err != nil {
			return Name{}, err
		}
		if listens == 0 {
			return Name{}, errKind
		}
		name.Network = TCP
	case unix.IPPROTO_UDP:
		if _, err := unix.Getpeername(fd); err == nil {
			return Name{}, errKind
		}
		name.Network = UDP
	default:
		return Name{}, errKind
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return Name{}, err
	}
	switch a := local.(type) {
	case *unix.SockaddrInet4:
		name.Addr = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		name.Addr = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	default:
		return Name{}, errKind
	}
	return name, nil
}

// netnsOf returns the network namespace that a socket belongs to.
func netnsOf(fd int) (NetNS, error) {
	nsfd, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		return NetNS{}, err
	}
	defer unix.Close(nsfd)
	unix.CloseOnExec(nsfd)
	var st unix.Stat_t
	if err := unix.Fstat(nsfd, &st); err != nil {
		return NetNS{}, err
	}
	return NetNS{Dev: st.Dev, Ino: st.Ino}, nil
}

// verify returns the sockets that are what they are said to be and belong to ns, in order of their names, and closes the
// others, for which it returns an error.
func verify(ns NetNS, sockets []Socket) ([]Socket, error) {
	var errs []error
	good := sockets[:0]
	for _, s := range sockets {
		got, name, err := Inspect(s.FD)
		switch {
		case err != nil:
		case got != ns:
			err = fmt.Errorf("%s is of network namespace %s, not %s", name, got, ns)
		case name != s.Name:
			err = fmt.Errorf("%s was said to be %s", name, s.Name)
		}
		if err != nil {
			errs = append(errs, err)
			s.Close()
			continue
		}
		good = append(good, s)
	}
	slices.SortFunc(good, func(a, b Socket) int { return a.Name.compare(b.Name) })
	return good, errors.Join(errs...)
}
