package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api"
)

// Constants of ctnetlink (include/uapi/linux/netfilter/nf_conntrack_common.h, nf_conntrack_tcp.h, nfnetlink_conntrack.h)
// that the netlink library does not name.
const (
	statusSeenReply = 1 << 1
	statusAssured   = 1 << 2
	statusConfirmed = 1 << 3

	protoTCPFlagsOriginal = 4
	protoTCPFlagsReply    = 5
	flagCloseInit         = 0x04
	flagBeLiberal         = 0x08

	stateEstablished = 3
	stateFinWait     = 4
	stateCloseWait   = 5
	stateLastAck     = 6
	stateTimeWait    = 7
	stateClose       = 8
)

const (
	// establishedTimeout is what an inserted entry lives without a packet: the kernel's own default for an established
	// connection, to which the first packet sets it anyhow.
	establishedTimeout = 5 * 24 * time.Hour
	// halfClosedTimeout is what Hold gives a half-closed connection instead of the kernel's 60 s or 120 s.
	halfClosedTimeout = time.Hour
	// endingTimeout is what an inserted entry lives of a connection that waits for no more than an acknowledgement: as
	// long as the socket may repeat its FIN to a peer that does not answer.
	endingTimeout = 15 * time.Minute
	// HoldPeriod is how often Hold has to run so that no half-closed connection is forgotten: well below the kernel's
	// 60 s for a connection in CLOSE_WAIT.
	HoldPeriod = 20 * time.Second
)

// Kernel is this machine's connection tracking. The zero value works.
type Kernel struct{}

// Exempt inserts an entry for every TCP connection of the network namespace that capture must leave alone and that is not
// tracked yet, and returns how many it inserted. Connection tracking must be on in the namespace (rules.Kernel.Fill), so
// that connections which begin meanwhile are tracked by themselves. An entry has window checks off and says how far the
// connection has come to its end, so that it ends with it: the next connection with the same addresses and ports is
// captured. For the same reason it deletes the entries of connections that ended before they could be exempted.
//
// If it fails, capture must not begin: it would cut connections.
func (Kernel) Exempt(netns ns.NetNS) (inserted int, err error) {
	err = inside(netns, "exempt connections", func(c *ctnetlink) error {
		all, err := sockets()
		if err != nil {
			return err
		}
		for _, f := range exemptions(all) {
			switch err := c.insert(f.flow, endOf(f.state)); {
			case err == nil:
				inserted++
			case !errors.Is(err, unix.EEXIST):
				return fmt.Errorf("insert entry for %s to %s: %w", f.src, f.dst, err)
			}
		}
		return forgetDead()
	})
	return inserted, err
}

// Hold keeps the entries of half-closed connections of the network namespace from running out, redirected or not. Without
// an entry the next segment of one would be taken for a new connection. It changes nothing else, and inserts nothing.
func (Kernel) Hold(netns ns.NetNS) error {
	return inside(netns, "hold connections", func(c *ctnetlink) error {
		all, err := sockets()
		if err != nil {
			return err
		}
		for _, f := range halfClosed(all) {
			if err := c.prolong(f, halfClosedTimeout); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("prolong entry of %s to %s: %w", f.src, f.dst, err)
			}
		}
		return nil
	})
}

// Use is what of the mesh is still in use in a network namespace.
type Use struct {
	// Listening: a proxy listens on one of its ports there.
	Listening bool
	// Connections is the number of connections that end at the proxy's ports.
	Connections int
	// Carried is the number of live tracked connections with the mark of those that the proxy opened to the application.
	Carried int
}

// Idle says that nothing is in use.
func (u Use) Idle() bool { return u == Use{} }

// Usage looks what of the mesh is in use in the network namespace.
func (Kernel) Usage(netns ns.NetNS) (Use, error) {
	var u Use
	err := inside(netns, "look for tunnelled connections", func(*ctnetlink) error {
		all, err := sockets()
		if err != nil {
			return err
		}
		for _, s := range all {
			if !proxyPort(s.local.Port()) {
				continue
			}
			switch s.state {
			case tcpListen:
				u.Listening = true
			case tcpTimeWait, tcpClose:
			default:
				u.Connections++
			}
		}
		u.Carried, err = carried()
		return err
	})
	return u, err
}

func carried() (int, error) {
	n := 0
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return 0, fmt.Errorf("list entries: %w", err)
		}
		for _, f := range flows {
			tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
			if ok && f.Mark&api.ConnmarkMask == api.ConnmarkInbound && tcp.State != stateTimeWait && tcp.State != stateClose {
				n++
			}
		}
	}
	return n, nil
}

// ctnetlink is one netlink socket for many requests.
type ctnetlink struct{ socket *nl.SocketHandle }

// inside runs f on a thread of its own in the network namespace.
func inside(in ns.NetNS, what string, f func(*ctnetlink) error) error {
	err := in.Do(func(ns.NetNS) error {
		s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer s.Close()
		return f(&ctnetlink{socket: &nl.SocketHandle{Socket: s}})
	})
	if err != nil {
		return fmt.Errorf("%s in %s: %w", what, in.Path(), err)
	}
	return nil
}

// end is how far a connection has come to its end: the state of its entry, flags of both directions, and how long the entry
// lives without a packet.
type end struct {
	state, flags uint8
	timeout      time.Duration
}

// endOf is the end of a connection whose socket is in a state. The flag lets a new connection take the place of an ended one.
func endOf(socket uint8) end {
	switch socket {
	case tcpFinWait1, tcpFinWait2:
		return end{stateFinWait, flagCloseInit, halfClosedTimeout}
	case tcpCloseWait:
		return end{stateCloseWait, flagCloseInit, halfClosedTimeout}
	case tcpLastAck, tcpClosing:
		return end{stateLastAck, flagCloseInit, endingTimeout}
	}
	return end{stateEstablished, 0, establishedTimeout}
}

func (c *ctnetlink) insert(f flow, e end) error {
	state := nl.NewRtAttr(nl.CTA_PROTOINFO|unix.NLA_F_NESTED, nil)
	tcp := state.AddRtAttr(nl.CTA_PROTOINFO_TCP|unix.NLA_F_NESTED, nil)
	tcp.AddRtAttr(nl.CTA_PROTOINFO_TCP_STATE, nl.Uint8Attr(e.state))
	// struct nf_ct_tcp_flags: flags, mask. The window's scale was told in a handshake that was not tracked.
	flags := flagBeLiberal | e.flags
	tcp.AddRtAttr(protoTCPFlagsOriginal, []byte{flags, flags})
	tcp.AddRtAttr(protoTCPFlagsReply, []byte{flags, flags})
	return c.send(f, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		tuple(nl.CTA_TUPLE_ORIG, f.src, f.dst), tuple(nl.CTA_TUPLE_REPLY, f.dst, f.src),
		// Seen in both directions: else the next packet counted as the first of a connection.
		nl.NewRtAttr(nl.CTA_STATUS, nl.BEUint32Attr(statusSeenReply|statusAssured|statusConfirmed)),
		timeout(e.timeout), state)
}

// prolong changes the time-out of the entry, whichever side opened the connection.
func (c *ctnetlink) prolong(f flow, d time.Duration) error {
	return c.send(f, 0, tuple(nl.CTA_TUPLE_ORIG, f.src, f.dst), timeout(d))
}

func (c *ctnetlink) send(f flow, flags int, attrs ...*nl.RtAttr) error {
	family := uint8(unix.AF_INET)
	if f.src.Addr().Is6() {
		family = unix.AF_INET6
	}
	req := nl.NewNetlinkRequest(int(netlink.ConntrackTable)<<8|nl.IPCTNL_MSG_CT_NEW, flags|unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: c.socket}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	for _, a := range attrs {
		req.AddData(a)
	}
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return err
}

func tuple(kind int, src, dst netip.AddrPort) *nl.RtAttr {
	from, to := nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST
	if src.Addr().Is6() {
		from, to = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	t := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	ip := t.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil)
	ip.AddRtAttr(from, src.Addr().AsSlice())
	ip.AddRtAttr(to, dst.Addr().AsSlice())
	proto := t.AddRtAttr(nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{unix.IPPROTO_TCP})
	proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, nl.BEUint16Attr(src.Port()))
	proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, nl.BEUint16Attr(dst.Port()))
	return t
}

func timeout(d time.Duration) *nl.RtAttr {
	return nl.NewRtAttr(nl.CTA_TIMEOUT, nl.BEUint32Attr(uint32(d/time.Second)))
}
