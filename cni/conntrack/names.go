package conntrack

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api"
)

// portNames is where resolvers listen.
const portNames = 53

// NamesServed tells whether somebody in the network namespace takes name queries on the port to which they are redirected.
func (Kernel) NamesServed(netns ns.NetNS) (bool, error) {
	served := false
	err := inside(netns, "look for who answers name queries", func(*ctnetlink) error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			all, err := netlink.SocketDiagUDP(family)
			if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
				return fmt.Errorf("list sockets: %w", err)
			}
			for _, s := range all {
				served = served || s.ID.SourcePort == api.PortDNS
			}
		}
		return nil
	})
	return served, err
}

// ForgetNames deletes the entries of name queries by UDP that go another way than new ones: those past the proxy if
// redirected is true, those to it if not. A program may use one socket for long, all of whose queries are one connection
// to the kernel. It returns how many it deleted.
func (Kernel) ForgetNames(netns ns.NetNS, redirected bool) (int, error) {
	n := 0
	err := inside(netns, "forget name queries", func(*ctnetlink) error {
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			deleted, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, names{redirected})
			n += int(deleted)
			if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("delete entries: %w", err)
			}
		}
		return nil
	})
	return n, err
}

// names matches what ForgetNames deletes.
type names struct{ redirected bool }

// MatchConntrackFlow implements netlink.CustomConntrackFilter. The proxy's own queries are in a zone of their own.
func (f names) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	server, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	if flow.Forward.Protocol != unix.IPPROTO_UDP || flow.Zone != 0 || flow.Forward.DstPort != portNames || server.IsLoopback() {
		return false
	}
	return (flow.Reverse.SrcPort == api.PortDNS) != f.redirected
}
