package lookup

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/miekg/dns"
)

// File returns a Config.Servers that reads a file of the form of resolv.conf each time.
func File(path string) func() ([]netip.AddrPort, error) {
	return func() ([]netip.AddrPort, error) {
		c, err := dns.ClientConfigFromFile(path)
		if err != nil {
			return nil, fmt.Errorf("read resolvers: %w", err)
		}
		var out []netip.AddrPort
		for _, s := range c.Servers {
			addr, err := netip.ParseAddrPort(net.JoinHostPort(s, c.Port))
			if err != nil {
				return nil, fmt.Errorf("read resolvers from %s: %w", path, err)
			}
			out = append(out, addr)
		}
		return out, nil
	}
}
