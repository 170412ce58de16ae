package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a pair of virtual Ethernet links.
type End struct {
	Name      string
	NetNS     string           // "" is the caller's own network namespace
	Master    string           // bridge in the same namespace to attach to, or ""
	Addresses []netip.Prefix   // with the prefix length of the link
	Hardware  net.HardwareAddr // chosen by the kernel if nil
}

// Route is a route to a network by way of a neighbour.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// Connect makes a pair of links, gives each end its place and addresses, and sets both up.
func Connect(a, b End) error {
	err := within(a.NetNS, func() error {
		peer := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: a.Name}, PeerName: b.Name}
		if b.NetNS != "" {
			ns, err := os.Open(NetNSDir + "/" + b.NetNS)
			if err != nil {
				return err
			}
			defer ns.Close()
			peer.PeerNamespace = netlink.NsFd(ns.Fd())
		}
		return netlink.LinkAdd(peer)
	})
	if err != nil {
		return fmt.Errorf("connect link %s to %s: %w", a.Name, b.Name, err)
	}
	for _, e := range []End{a, b} {
		if err := within(e.NetNS, e.configure); err != nil {
			return fmt.Errorf("configure link %s: %w", e.Name, err)
		}
	}
	return nil
}

// MakeBridge makes a bridge with these addresses in the named network namespace and sets it up.
func MakeBridge(e End) error {
	err := within(e.NetNS, func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: e.Name}}); err != nil {
			return err
		}
		return e.configure()
	})
	if err != nil {
		return fmt.Errorf("make bridge %s: %w", e.Name, err)
	}
	return nil
}

// configure runs inside the end's network namespace.
func (e End) configure() error {
	link, err := netlink.LinkByName(e.Name)
	if err != nil {
		return err
	}
	if e.Master != "" {
		master, err := netlink.LinkByName(e.Master)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", e.Master, err)
		}
		if err := netlink.LinkSetMaster(link, master); err != nil {
			return err
		}
	}
	if e.Hardware != nil {
		if err := netlink.LinkSetHardwareAddr(link, e.Hardware); err != nil {
			return fmt.Errorf("address %s: %w", e.Hardware, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, p := range e.Addresses {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			// A machine that has IPv6 turned off can have it on this link all the same.
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+e.Name+"/disable_ipv6", []byte("0"), 0); err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD // no other host is on this link: usable at once
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	return nil
}

// Prepare sets loopback up, turns forwarding on for the named network namespace, and adds the routes. Without ipv6 it turns
// IPv6 off there, if the kernel has it.
func Prepare(netns string, ipv6 bool, routes []Route) error {
	err := within(netns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		sysctls := []string{"net/ipv4/ip_forward=1"}
		if ipv6 {
			sysctls = append(sysctls, "net/ipv6/conf/all/forwarding=1", "net/ipv6/conf/default/forwarding=1")
		} else if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
			sysctls = append(sysctls, "net/ipv6/conf/all/disable_ipv6=1", "net/ipv6/conf/default/disable_ipv6=1")
		}
		for _, s := range sysctls {
			name, value, _ := strings.Cut(s, "=")
			if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
				return err
			}
		}
		for _, r := range routes {
			if err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(r.To), Gw: r.Via.AsSlice()}); err != nil {
				return fmt.Errorf("route to %s by %s: %w", r.To, r.Via, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("prepare netns %s: %w", netns, err)
	}
	return nil
}

// RemoveLink removes a link from the named network namespace ("": the caller's own). Its peer goes with it. A link or a
// namespace that is not there is no error.
func RemoveLink(netns, name string) error {
	if netns != "" {
		if _, ok := netNSInode(netns); !ok {
			return nil
		}
	}
	err := within(netns, func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	var missing netlink.LinkNotFoundError
	if err != nil && !errors.As(err, &missing) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// Networks returns the networks that the caller's own network namespace has addresses in or routes to, without default
// routes.
func Networks() ([]netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		if ok && bits > 0 {
			out = append(out, netip.PrefixFrom(addr.Unmap(), bits))
		}
	}
	return out, nil
}

// IPv6 tells whether a network namespace can carry IPv6 pods and services, and if not, why.
func IPv6(netns string) error {
	const setting = "net/ipv6/conf/all/disable_ipv6"
	return within(netns, func() error {
		off, err := os.ReadFile("/proc/sys/" + setting)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return errors.New("the kernel has no IPv6")
		case err != nil:
			return err
		case strings.TrimSpace(string(off)) != "0":
			return fmt.Errorf("%s is %s", setting, strings.TrimSpace(string(off)))
		}
		return nil
	})
}

func within(netns string, f func() error) error {
	if netns == "" {
		return f()
	}
	return InNetNS(netns, f)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
