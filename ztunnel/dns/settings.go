package dns

import (
	"bufio"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Limits of resolver settings, which may be written by anybody.
const (
	maxServers = 8
	maxSearch  = 32
	// maxNDots and defaultNDots are those of resolv.conf(5).
	maxNDots     = 15
	defaultNDots = 1
	// clusterNDots is what kubelet writes for pods that use the cluster's DNS.
	clusterNDots = 5
	// maxName and maxLabel are the longest host name and the longest part of one (RFC 1035), without the final dot.
	maxName, maxLabel = 253, 63
)

// Settings are how a pod resolves names. The zero value is that of a pod of which nothing is known; see Settings.orDefault.
type Settings struct {
	// Servers are where queries go whose own destination is not known, in order.
	Servers []netip.AddrPort
	// Search are domains that are put behind a name, lower case and without a final dot.
	Search []string
	// NDots is how many dots a name must have to be tried without the search domains first.
	NDots int
}

// Equal tells whether both are the same.
func (s Settings) Equal(o Settings) bool {
	return slices.Equal(s.Servers, o.Servers) && slices.Equal(s.Search, o.Search) && s.NDots == o.NDots
}

// NewSettings makes settings of what an agent said. What cannot be used it leaves out.
func NewSettings(servers, search []string, ndots int) Settings {
	var s Settings
	for _, text := range servers {
		if addr, err := netip.ParseAddr(text); err == nil && len(s.Servers) < maxServers {
			s.Servers = append(s.Servers, netip.AddrPortFrom(addr.Unmap(), port))
		}
	}
	for _, domain := range search {
		if name, ok := canonical(domain); ok && name != "" && len(s.Search) < maxSearch {
			s.Search = append(s.Search, name)
		}
	}
	s.NDots = min(max(ndots, 0), maxNDots)
	return s
}

// ParseSettings reads a resolv.conf. Lines that it does not understand it leaves out, as resolvers do.
func ParseSettings(r io.Reader) (Settings, error) {
	var servers, search []string
	ndots := defaultNDots
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			servers = append(servers, fields[1])
		case "search", "domain":
			search = fields[1:] // the last line counts
		case "options":
			for _, o := range fields[1:] {
				if text, ok := strings.CutPrefix(o, "ndots:"); ok {
					if n, err := strconv.Atoi(text); err == nil {
						ndots = n
					}
				}
			}
		}
	}
	return NewSettings(servers, search, ndots), lines.Err()
}

// clusterSettings are what kubelet writes for a pod of the namespace that has no wishes of its own.
func clusterSettings(namespace, clusterDomain string) Settings {
	return NewSettings(nil, []string{namespace + ".svc." + clusterDomain, "svc." + clusterDomain, clusterDomain}, clusterNDots)
}

// canonical returns a name in lower case without a final dot, and whether it is a host name at all: labels of 1 to 63
// characters, 253 together. Names with escapes are none.
func canonical(name string) (string, bool) {
	name = strings.TrimSuffix(name, ".")
	if len(name) > maxName || strings.ContainsAny(name, "\\ ") {
		return "", false
	}
	if name == "" {
		return "", true
	}
	for label := range strings.SplitSeq(name, ".") {
		if len(label) == 0 || len(label) > maxLabel {
			return "", false
		}
	}
	return strings.ToLower(name), true
}
