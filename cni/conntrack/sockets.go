package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api"
)

// TCP states as sock_diag numbers them (include/net/tcp_states.h).
const (
	tcpFinWait1  = 4
	tcpFinWait2  = 5
	tcpTimeWait  = 6
	tcpClose     = 7
	tcpCloseWait = 8
	tcpLastAck   = 9
	tcpListen    = 10
	tcpClosing   = 11
)

// socket is one TCP socket; addresses of IPv4 connections on IPv6 sockets are un-mapped.
type socket struct {
	local, remote netip.AddrPort
	state         uint8
}

// dumpAttempts bounds how often a dump of sockets is repeated because it changed underneath.
const dumpAttempts = 5

// sockets lists the TCP sockets of the calling thread's network namespace.
func sockets() ([]socket, error) {
	var out []socket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		var found []*netlink.Socket
		var err error
		for range dumpAttempts {
			if found, err = netlink.SocketDiagTCP(family); !errors.Is(err, netlink.ErrDumpInterrupted) {
				break
			}
		}
		if err != nil {
			return nil, fmt.Errorf("list sockets: %w", err)
		}
		for _, s := range found {
			out = append(out, socket{
				local:  addrPort(s.ID.Source, s.ID.SourcePort),
				remote: addrPort(s.ID.Destination, s.ID.DestinationPort),
				state:  s.State,
			})
		}
	}
	return out, nil
}

func addrPort(ip []byte, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.Unmap(), port)
}

// flow is a TCP connection as the side that opened it sees it.
type flow struct{ src, dst netip.AddrPort }

// exemption is a connection that capture leaves alone, and the state of its socket.
type exemption struct {
	flow
	state uint8
}

// exemptions chooses the connections that capture must leave alone: those of the application with somebody outside.
// Left out are loopback, which is never captured; connections of the namespace with itself, the proxy's to the
// application under a client's address among them; the proxy's own; and those of the application that end at the proxy,
// which must not continue in plain if their entry has been lost.
func exemptions(all []socket) []exemption {
	type pair struct{ local, remote netip.AddrPort }
	listening := map[uint16]bool{}
	inside := map[pair]bool{}
	redirected := map[netip.AddrPort]bool{}
	for _, s := range all {
		switch {
		case s.state == tcpListen:
			listening[s.local.Port()] = true
		default:
			inside[pair{s.remote, s.local}] = true
			if s.local.Port() == api.PortOutbound || s.local.Port() == api.PortDNS {
				redirected[s.remote] = true
			}
		}
	}
	var out []exemption
	for _, s := range all {
		switch {
		case slices.Contains([]uint8{tcpListen, tcpTimeWait, tcpClose}, s.state),
			s.local.Addr().IsLoopback(), s.remote.Addr().IsLoopback(), s.remote.Port() == 0,
			proxyPort(s.local.Port()),
			inside[pair{s.local, s.remote}],
			redirected[s.local]:
			continue
		}
		f := flow{src: s.local, dst: s.remote}
		if listening[s.local.Port()] {
			f = flow{src: s.remote, dst: s.local}
		}
		out = append(out, exemption{f, s.state})
	}
	return out
}

func proxyPort(p uint16) bool {
	return p == api.PortOutbound || p == api.PortInbound || p == api.PortHBONE || p == api.PortDNS
}

// halfClosed chooses the connections that one side has closed and the other may still use.
func halfClosed(all []socket) []flow {
	var out []flow
	for _, s := range all {
		if s.state == tcpFinWait1 || s.state == tcpFinWait2 || s.state == tcpCloseWait {
			out = append(out, flow{src: s.local, dst: s.remote})
		}
	}
	return out
}
