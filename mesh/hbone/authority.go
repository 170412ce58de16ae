package hbone

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Authority is the parsed target of a CONNECT request: either Addr or Host is set, and always Port.
type Authority struct {
	Addr netip.Addr // an IP address, never an IPv4-mapped one, without zone
	Host string     // a DNS name, in lower case, without a dot at the end
	Port uint16     // 1 to 65535
}

// maxHost is the length of a DNS name in its text form without the last dot (RFC 1035 section 2.3.4).
const maxHost = 253

// AddrPort returns the address and port, invalid if the authority is a host name.
func (a Authority) AddrPort() netip.AddrPort { return netip.AddrPortFrom(a.Addr, a.Port) }

func (a Authority) String() string {
	if a.Addr.IsValid() {
		return a.AddrPort().String()
	}
	return a.Host + ":" + strconv.Itoa(int(a.Port))
}

// ParseAuthority reads "ip:port" (IPv6 in brackets) or "host:port", as the :authority of a CONNECT request must be
// (RFC 9113 section 8.5). User information, paths, zones, a missing or zero port are errors.
func ParseAuthority(s string) (Authority, error) {
	fail := func(why string) (Authority, error) {
		if len(s) > 300 {
			s = s[:300] + "..."
		}
		return Authority{}, fmt.Errorf("parse authority %q: %s", s, why)
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return fail("no port")
	}
	host, portText := s[:i], s[i+1:]
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 || portText[0] == '+' || portText[0] == '0' {
		return fail("the port is not a number from 1 to 65535")
	}
	if strings.HasPrefix(host, "[") {
		inner, ok := strings.CutSuffix(host[1:], "]")
		if !ok {
			return fail("bracket is not closed")
		}
		addr, err := netip.ParseAddr(inner)
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return fail("not an IPv6 address in brackets")
		}
		return Authority{Addr: addr.Unmap(), Port: uint16(port)}, nil
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if !addr.Is4() {
			return fail("an IPv6 address needs brackets")
		}
		return Authority{Addr: addr, Port: uint16(port)}, nil
	}
	host = strings.TrimSuffix(host, ".")
	if why := checkHost(host); why != "" {
		return fail(why)
	}
	return Authority{Host: strings.ToLower(host), Port: uint16(port)}, nil
}

// checkHost returns what is wrong with a host name, or "". Underscores are allowed: Kubernetes does not make such names,
// but ServiceEntry hosts have them. A name whose last label is a number could be taken for an address.
func checkHost(host string) string {
	if host == "" {
		return "no host"
	}
	if len(host) > maxHost {
		return "host is too long"
	}
	last := ""
	for label := range strings.SplitSeq(host, ".") {
		last = label
		if label == "" || len(label) > 63 {
			return "host has an empty or too long label"
		}
		for _, b := range []byte(label) {
			switch {
			case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9', b == '-', b == '_':
			default:
				return fmt.Sprintf("host has the character %q", b)
			}
		}
	}
	if strings.Trim(last, "0123456789") == "" {
		return "host is neither an IPv4 address nor a name"
	}
	return ""
}
