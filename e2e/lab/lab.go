// Package lab builds a small data centre out of network namespaces: pods on one bridge, of one address family or of both, nodes
// that run real ztunnel binaries, the agent's own ZDS server and redirect rules before them, and a control plane that says what it is
// told. Tests and benchmarks use it to drive any proxy that speaks the same wires. It is for root on Linux, uses no
// address of the machine, and everything that it makes is named ambit-t-… and goes with Close; Clear removes what a run
// left that was cut off.
package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"

	"github.com/ambit-mesh/ambit/cni/rules"
)

// Addresses of the lab. They exist only inside its namespaces.
var (
	// Gateway4 and Gateway6 are the bridge's own addresses, where the control plane listens.
	Gateway4 = netip.MustParseAddr("10.77.0.1")
	Gateway6 = netip.MustParseAddr("fd77::1")
)

const (
	prefix = "ambit-t-"
	bits4  = 16
	bits6  = 64
	// Bridge is the interface of the router to which all hosts are linked.
	Bridge  = "lab0"
	mtuLink = 1500
)

// Family says which address families a lab, or a host in it, has. The zero value is Dual.
type Family int

// The families. Where IPv6 is not among them, it is turned off in the network namespace; where IPv4 is not, there is no address
// of it but loopback's.
const (
	Dual Family = iota
	IPv4
	IPv6
)

// Has tells whether addresses of a's family are among the host's.
func (f Family) Has(a netip.Addr) bool { return f == Dual || (f == IPv4) == a.Is4() }

// String is the family's name.
func (f Family) String() string { return [...]string{"dual stack", "IPv4 only", "IPv6 only"}[f] }

// Config configures a Lab.
type Config struct {
	// Family is that of every host, but of those that AddHostOf makes otherwise.
	Family Family
	// Dir is a directory for sockets, tokens and logs. The caller removes it.
	Dir string
	// Logger hears of what the lab's own parts do; nil: nobody does.
	Logger *slog.Logger
	// MaxLog is how many bytes a proxy may log before it is killed: a run-away one fills a disk in minutes. Zero means 64 MiB.
	MaxLog int64
}

// Lab is a running lab. Its methods may be called at once.
type Lab struct {
	// Control is the control plane that the lab's proxies are told to use.
	Control *Control
	// Kernel puts capture rules.
	Kernel *rules.Kernel

	dir    string
	family Family
	logger *slog.Logger
	maxLog int64
	net    *Namespace

	mu     sync.Mutex // guards the fields below
	next   int
	closes []func() error
}

// New builds the bridge and starts the control plane. The caller closes the lab.
func New(ctx context.Context, c Config) (*Lab, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("make a lab: needs root, for network namespaces")
	}
	if c.MaxLog == 0 {
		c.MaxLog = 64 << 20
	}
	l := &Lab{dir: c.Dir, family: c.Family, logger: c.Logger, maxLog: c.MaxLog, next: 9}
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("make a lab: %w", err), l.Close())
	}
	return l, nil
}

func (l *Lab) build(ctx context.Context) error {
	var err error
	if l.net, err = newNamespace(l.family); err != nil {
		return err
	}
	l.OnClose(l.net.close)
	if l.Kernel, err = rules.NewKernel(ctx, nil); err != nil {
		return err
	}
	err = l.net.Do(func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: Bridge, MTU: mtuLink}}
		if err := netlink.LinkAdd(br); err != nil {
			return fmt.Errorf("add bridge: %w", err)
		}
		return configure(br, of(l.family, Gateway4, Gateway6))
	})
	if err != nil {
		return err
	}
	if l.Control, err = newControl(l.net, of(l.family, Gateway4, Gateway6)[0], l.dir, l.logger); err != nil {
		return err
	}
	l.OnClose(l.Control.close)
	return nil
}

// OnClose has f called by Close, before what was made earlier goes.
func (l *Lab) OnClose(f func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closes = append(l.closes, f)
}

// Close ends every process and removes every namespace of the lab, last made first.
func (l *Lab) Close() error {
	l.mu.Lock()
	closes := l.closes
	l.closes = nil
	l.mu.Unlock()
	var errs []error
	for i := len(closes) - 1; i >= 0; i-- {
		errs = append(errs, closes[i]())
	}
	return errors.Join(errs...)
}

// Router is the namespace of the bridge, by whose addresses hosts leave the lab: what a node is to its pods.
func (l *Lab) Router() *Namespace { return l.net }

// Host is a namespace with an interface on the bridge: a pod's, or that in which a node's proxy runs.
type Host struct {
	*Namespace
	Name string
	// IPv4 and IPv6 are its addresses; the zero Addr where its family has none.
	IPv4 netip.Addr
	IPv6 netip.Addr
}

// Addrs are the host's addresses, IPv4 first.
func (h *Host) Addrs() []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{h.IPv4, h.IPv6}, func(a netip.Addr) bool { return !a.IsValid() })
}

// AddHost makes a host with the next free addresses.
func (l *Lab) AddHost(name string) (*Host, error) { return l.AddHostOf(l.family, name) }

// AddHostOf is AddHost for a host of one family in a lab that has both.
func (l *Lab) AddHostOf(f Family, name string) (*Host, error) {
	l.mu.Lock()
	l.next++
	n := l.next
	l.mu.Unlock()
	space, err := newNamespace(f)
	if err != nil {
		return nil, err
	}
	l.OnClose(space.close)
	h := &Host{Namespace: space, Name: name}
	for _, a := range of(f,
		netip.AddrFrom4([4]byte{10, 77, byte(n >> 8), byte(n)}),
		netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 14: byte(n >> 8), 15: byte(n)})) {
		if a.Is4() {
			h.IPv4 = a
		} else {
			h.IPv6 = a
		}
	}
	if err := l.link(h, n); err != nil {
		return nil, fmt.Errorf("link host %s: %w", name, err)
	}
	return h, nil
}

// of returns those addresses that the family has.
func of(f Family, addrs ...netip.Addr) []netip.Addr {
	return slices.DeleteFunc(addrs, func(a netip.Addr) bool { return !f.Has(a) })
}

// End removes the namespace, unless somebody else holds it open, before Close would. It must not be used any more.
func (h *Host) End() error { return h.close() }

func (l *Lab) link(h *Host, n int) error {
	port := fmt.Sprintf("port%d", n)
	err := h.Do(func() error {
		veth := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: mtuLink},
			PeerName:  port, PeerNamespace: netlink.NsFd(int(l.net.handle.Fd())),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return configure(veth, h.Addrs())
	})
	if err != nil {
		return err
	}
	err = l.net.Do(func() error {
		link, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		br, err := netlink.LinkByName(Bridge)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(link, br); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
	if err != nil {
		return err
	}
	return h.Do(func() error {
		for _, gw := range []netip.Addr{Gateway4, Gateway6} {
			if gw.Is4() && !h.IPv4.IsValid() || gw.Is6() && !h.IPv6.IsValid() {
				continue
			}
			if err := netlink.RouteReplace(&netlink.Route{Gw: net.IP(gw.AsSlice())}); err != nil {
				return fmt.Errorf("default route by %s: %w", gw, err)
			}
		}
		return nil
	})
}

// configure gives a link of the current namespace its addresses, usable at once, and brings it up.
func configure(link netlink.Link, addrs []netip.Addr) error {
	name := link.Attrs().Name
	// Absent where the kernel has no IPv6.
	_ = os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "accept_dad"), []byte("0"), 0o644)
	live, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		bits, flags := bits4, 0
		if a.Is6() {
			bits, flags = bits6, ifaNoDAD
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.IP(a.AsSlice()), Mask: net.CIDRMask(bits, a.BitLen())}, Flags: flags}
		if err := netlink.AddrAdd(live, addr); err != nil {
			return fmt.Errorf("address %s on %s: %w", a, name, err)
		}
	}
	return netlink.LinkSetUp(live)
}

// Handle is the namespace as the CNI libraries know it.
func (n *Namespace) Handle() ns.NetNS { return n.handle }
