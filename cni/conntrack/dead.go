package conntrack

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api"
)

// forgetDead deletes the entries of connections of the application that have no socket any more and that the kernel
// takes for alive. They come from connections that ended while tracking was turned on: it saw their last segment alone,
// perhaps took the wrong side for the one that opened them, and waits for minutes for an end that is past. Until then a
// new connection with the same addresses and ports would be taken for a part of the old one: it would go out in plain,
// or all its SYNs would be refused.
//
// Left alone are entries of redirected connections, the proxy's to the application, and connections that are only
// forwarded here, which have no socket. Entries are read before sockets, so that a connection which begins meanwhile
// is not among them.
func forgetDead() error {
	dead, err := tracked()
	if err != nil || len(dead) == 0 {
		return err
	}
	all, err := sockets()
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.state != tcpTimeWait && s.state != tcpClose {
			delete(dead, flow{s.local, s.remote})
			delete(dead, flow{s.remote, s.local})
		}
	}
	if err := dead.keepForwarded(); err != nil || len(dead) == 0 {
		return err
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, dead)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete entries of ended connections: %w", err)
		}
	}
	return nil
}

// flows is a set of connections.
type flows map[flow]bool

// tracked are the entries that say that a connection is alive, and that it goes where it was sent to.
func tracked() (flows, error) {
	out := flows{}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		entries, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list entries: %w", err)
		}
		for _, e := range entries {
			if f, ok := alive(e); ok {
				out[f] = true
			}
		}
	}
	return out, nil
}

// alive says which connection an entry is about, if that is one that goes where it was sent to and that has not ended.
func alive(e *netlink.ConntrackFlow) (flow, bool) {
	tcp, ok := e.ProtoInfo.(*netlink.ProtoInfoTCP)
	if !ok || tcp.State < stateEstablished || tcp.State >= stateTimeWait || e.Zone != 0 || e.Mark&api.ConnmarkMask == api.ConnmarkInbound {
		return flow{}, false
	}
	f := flow{addrPort(e.Forward.SrcIP, e.Forward.SrcPort), addrPort(e.Forward.DstIP, e.Forward.DstPort)}
	back := flow{addrPort(e.Reverse.DstIP, e.Reverse.DstPort), addrPort(e.Reverse.SrcIP, e.Reverse.SrcPort)}
	return f, f == back
}

// keepForwarded takes out of the set what neither begins nor ends in the network namespace.
func (fs flows) keepForwarded() error {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list addresses: %w", err)
	}
	local := map[netip.Addr]bool{}
	for _, a := range addrs {
		local[addrPort(a.IP, 0).Addr()] = true
	}
	for f := range fs {
		if !local[f.src.Addr()] && !local[f.dst.Addr()] {
			delete(fs, f)
		}
	}
	return nil
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (fs flows) MatchConntrackFlow(e *netlink.ConntrackFlow) bool {
	f, ok := alive(e)
	return ok && fs[f]
}
