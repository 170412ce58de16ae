package netns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ListenUDP binds a UDP socket to an address of the namespace. If it is shared, the newest of several gets what comes.
func (n *Namespace) ListenUDP(l Listener, addr netip.AddrPort) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return control(c, l.setOptions)
	}}
	var conn net.PacketConn
	err := n.Do(func() error {
		var err error
		conn, err = lc.ListenPacket(context.Background(), udpNetwork(addr.Addr()), addr.String())
		return err
	})
	if err != nil {
		if conn != nil {
			conn.Close()
		}
		return nil, err
	}
	udp := conn.(*net.UDPConn)
	if l.Shared {
		if err := preferNewest(udp); err != nil {
			udp.Close()
			return nil, err
		}
	}
	return udp, nil
}

// ListenTCPAt is ListenTCP on one address.
func (n *Namespace) ListenTCPAt(l Listener, addr netip.AddrPort) (*net.TCPListener, error) {
	network := "tcp4"
	if addr.Addr().Is6() {
		network = "tcp6"
	}
	return n.listen(l, network, addr)
}

// DialUDP makes a UDP socket in the namespace that sends to dst, with a mark (SO_MARK) on its packets.
func (n *Namespace) DialUDP(mark int, dst netip.AddrPort) (*net.UDPConn, error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return control(c, func(fd int) error {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
				return fmt.Errorf("set SO_MARK: %w", err)
			}
			return nil
		})
	}}
	var conn net.Conn
	// To connect a UDP socket is to look for a route; it does not wait.
	err := n.Do(func() error {
		var err error
		conn, err = d.Dial(udpNetwork(dst.Addr()), dst.String())
		return err
	})
	if err != nil {
		if conn != nil {
			conn.Close()
		}
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

func udpNetwork(addr netip.Addr) string {
	if addr.Is6() {
		return "udp6"
	}
	return "udp4"
}

// Original returns where a client's packets were going before they were redirected to local, a socket of the namespace, and
// whether they were; protocol is unix.IPPROTO_TCP or unix.IPPROTO_UDP.
func (c *Conntrack) Original(protocol uint8, client, local netip.AddrPort) (netip.AddrPort, bool, error) {
	// What a redirected packet's connection expects to come back is from where it was redirected to.
	q := tupleQuery{kind: nl.CTA_TUPLE_REPLY, protocol: protocol, src: local, dst: client}
	var original netip.AddrPort
	found := false
	err := c.ask(q, func(m message) error {
		attributes, err := m.entry()
		if err != nil || attributes == nil {
			return err
		}
		addrType := uint16(nl.CTA_IP_V4_DST)
		if client.Addr().Is6() {
			addrType = nl.CTA_IP_V6_DST
		}
		ip, ok := find(attributes, nl.CTA_TUPLE_ORIG, nl.CTA_TUPLE_IP, addrType)
		addr, valid := netip.AddrFromSlice(ip)
		port, there := find(attributes, nl.CTA_TUPLE_ORIG, nl.CTA_TUPLE_PROTO, nl.CTA_PROTO_DST_PORT)
		if !ok || !valid || !there || len(port) != 2 {
			return errors.New("an entry without addresses")
		}
		original, found = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(port)), true
		return nil
	})
	if err != nil {
		return netip.AddrPort{}, false, fmt.Errorf("look up where %s sent to %s in connection tracking: %w", client, local, err)
	}
	return original, found && original != local, nil
}
