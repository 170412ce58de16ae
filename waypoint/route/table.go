package route

import (
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// Table is a compiled RouteConfiguration.
type Table struct {
	// Name of the RouteConfiguration, which is that of the chain that uses it.
	Name string

	hosts      []*virtualHost
	any        *virtualHost // domain "*"; nil if none
	exact      map[string]*virtualHost
	wildcards  []wildcard // the longest first, suffixes ("*.example.org") before prefixes ("www.*"), as Envoy looks for them
	ignorePort bool
}

// Client is what is known of who sends a request, beyond the request.
type Client struct {
	// Principal is the identity of the client as its certificate says it, "spiffe://..."; "" if it has none. Routes match it as
	// the filter state io.istio.peer_principal.
	Principal string
}

type virtualHost struct {
	name   string
	routes []*Route
	limit  *Limit // nil if there is none
	index  index
}

// wildcard is a domain that begins or ends with "*".
type wildcard struct {
	part   string // without the "*", in lower case
	suffix bool   // the domain ends with part
	host   *virtualHost
}

// Compile reads rc, which it keeps no part of. Its error names every field that cannot be honoured by its path from rc.
func Compile(rc *routev3.RouteConfiguration) (*Table, error) {
	var r strict.Report
	c := compiler{report: &r, config: rc}
	supported.Check(rc, nil, &r)
	t := c.table()
	if err := r.Err(); err != nil {
		return nil, err
	}
	return t, nil
}

// Inherit takes over what a former table of the same name has counted, nil for none: a limit that is as it was goes on where it is.
// Call it before the table is used.
func (t *Table) Inherit(old *Table) {
	if old == nil {
		return
	}
	for _, host := range t.hosts {
		for _, was := range old.hosts {
			if host.limit != nil && was.limit != nil && host.name == was.name && host.limit.LimitRule == was.limit.LimitRule {
				host.limit.shared = was.limit.shared
			}
		}
	}
}

// Match returns the first route that matches; nil if none does: the answer is 404. The path must be as Paths.Apply leaves it.
func (t *Table) Match(req *message.Request, c Client) *Route {
	vh := t.any
	if t.exact != nil || t.wildcards != nil {
		vh = t.host(req.Authority)
	}
	if vh == nil {
		return nil
	}
	return vh.match(req, c)
}

// Clusters returns the names of all clusters that routes and mirrors name, sorted, each once.
func (t *Table) Clusters() []string {
	var all []string
	for _, vh := range t.hosts {
		for _, r := range vh.routes {
			if r.Forward == nil {
				continue
			}
			for _, target := range r.Forward.Targets {
				all = append(all, target.Cluster)
			}
			for _, m := range r.Forward.Mirrors {
				all = append(all, m.Cluster)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Len is how many routes there are.
func (t *Table) Len() int {
	n := 0
	for _, vh := range t.hosts {
		n += len(vh.routes)
	}
	return n
}

// host returns the virtual host for an authority: an exact domain before the longest suffix, the longest prefix and "*".
func (t *Table) host(authority string) *virtualHost {
	authority = strings.ToLower(authority)
	if t.ignorePort {
		authority, _ = splitPort(authority)
	}
	if vh := t.exact[authority]; vh != nil {
		return vh
	}
	for _, w := range t.wildcards {
		if len(authority) <= len(w.part) {
			continue
		}
		if w.suffix && strings.HasSuffix(authority, w.part) || !w.suffix && strings.HasPrefix(authority, w.part) {
			return w.host
		}
	}
	return t.any
}

// splitPort splits an authority into host and port; port is "" if there is none.
func splitPort(authority string) (host, port string) {
	i := strings.LastIndexByte(authority, ':')
	if i < 0 || strings.IndexByte(authority[i:], ']') >= 0 {
		return authority, ""
	}
	return authority[:i], authority[i+1:]
}
