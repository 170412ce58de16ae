package harness

import (
	"encoding/binary"
	"net/netip"
)

// segment is a TCP segment as it was on a link.
type segment struct {
	src, dst netip.AddrPort
	syn, ack bool
	fin, rst bool
	payload  []byte // refers to the frame
}

// Numbers of IEEE 802.3, RFC 791, RFC 8200 and RFC 9293.
const (
	etherTypeIPv4 = 0x0800
	etherTypeIPv6 = 0x86dd
	etherHeader   = 14
	ipv6Header    = 40
	protocolTCP   = 6

	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// parseFrame finds the TCP segment in an Ethernet frame. It returns false for everything else: other protocols, fragments
// but the first, and frames that are cut short. A zero total length means a frame larger than IP can say (segments that the
// kernel has yet to cut); then the frame's own end counts.
func parseFrame(frame []byte) (segment, bool) {
	if len(frame) < etherHeader {
		return segment{}, false
	}
	etherType := binary.BigEndian.Uint16(frame[12:])
	packet := frame[etherHeader:]
	switch etherType {
	case etherTypeIPv4:
		return parseIPv4(packet)
	case etherTypeIPv6:
		return parseIPv6(packet)
	}
	return segment{}, false
}

func parseIPv4(packet []byte) (segment, bool) {
	if len(packet) < 20 || packet[0]>>4 != 4 || packet[9] != protocolTCP {
		return segment{}, false
	}
	header := int(packet[0]&0xf) * 4
	total := int(binary.BigEndian.Uint16(packet[2:]))
	if total == 0 {
		total = len(packet)
	}
	fragment := binary.BigEndian.Uint16(packet[6:]) & 0x1fff
	if header < 20 || total < header || len(packet) < total || fragment != 0 {
		return segment{}, false
	}
	src, _ := netip.AddrFromSlice(packet[12:16])
	dst, _ := netip.AddrFromSlice(packet[16:20])
	return parseTCP(src, dst, packet[header:total])
}

// parseIPv6 takes TCP right behind the fixed header only: pods' packets have no extension headers.
func parseIPv6(packet []byte) (segment, bool) {
	if len(packet) < ipv6Header || packet[0]>>4 != 6 || packet[6] != protocolTCP {
		return segment{}, false
	}
	total := ipv6Header + int(binary.BigEndian.Uint16(packet[4:]))
	if total == ipv6Header {
		total = len(packet)
	}
	if len(packet) < total {
		return segment{}, false
	}
	src, _ := netip.AddrFromSlice(packet[8:24])
	dst, _ := netip.AddrFromSlice(packet[24:40])
	return parseTCP(src, dst, packet[ipv6Header:total])
}

func parseTCP(src, dst netip.Addr, tcp []byte) (segment, bool) {
	if len(tcp) < 20 {
		return segment{}, false
	}
	offset := int(tcp[12]>>4) * 4
	if offset < 20 || len(tcp) < offset {
		return segment{}, false
	}
	flags := tcp[13]
	return segment{
		src: netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp[0:])),
		dst: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:])),
		syn: flags&flagSYN != 0, ack: flags&flagACK != 0, fin: flags&flagFIN != 0, rst: flags&flagRST != 0,
		payload: tcp[offset:],
	}, true
}
