package app

import (
	"cmp"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/mesh/admin"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// pages are what the loopback endpoint shows of a waypoint.
func (p *parts) pages() []admin.Page {
	return []admin.Page{
		{Path: "config_dump", About: "what the control plane has said, as JSON, in Envoy's shape", Write: p.dumpConfig},
		{Path: "listeners", About: "what is served where, by which filter chain, as JSON", Write: p.dumpListeners},
		{Path: "clusters", About: "backends and their endpoints as they are now, as JSON", Write: p.dumpClusters},
		{Path: "stats", About: "what the proxy does, as JSON; metrics are on port 15020", Write: p.dumpStats},
	}
}

type certificateDump struct {
	Identity string    `json:"identity"`
	State    string    `json:"state"`
	Expires  time.Time `json:"expires,omitzero"`
	Error    string    `json:"error,omitempty"`
}

type xdsDump struct {
	Connected bool                         `json:"connected"`
	LastError string                       `json:"lastError,omitempty"`
	Rejected  map[string]map[string]string `json:"rejected,omitempty"`
}

// dumpConfig is Envoy's /config_dump, with what only ambit has beside it.
func (p *parts) dumpConfig(w io.Writer) error {
	s := admin.NewStream(w)
	admin.List(s, "configs", p.store.Dump())
	st := p.discovery.Status()
	x := xdsDump{Connected: st.Connected, Rejected: st.Rejected}
	if st.LastError != nil {
		x.LastError = st.LastError.Error()
	}
	s.Member("xds", x)
	var certs []certificateDump
	for _, c := range p.certs.Snapshot() {
		d := certificateDump{Identity: c.Identity.String(), State: string(c.State)}
		if c.SVID != nil {
			d.Expires = c.SVID.NotAfter
		}
		if c.Err != nil {
			d.Error = c.Err.Error()
		}
		certs = append(certs, d)
	}
	s.Member("certificates", certs)
	s.Member("missingRoutes", p.store.Load().Missing())
	return s.Close()
}

type clusterDump struct {
	Name      string         `json:"name"`
	Requests  int            `json:"requests"`         // under way
	Waiting   int            `json:"waiting"`          // for a connection
	Limits    *limitsDump    `json:"limits,omitempty"` // circuit breakers
	Endpoints []endpointDump `json:"endpoints"`
}

// limitsDump are those of config.Limits that bound something.
type limitsDump struct {
	Connections *uint32 `json:"connections,omitempty"`
	Pending     *uint32 `json:"pending,omitempty"`
	Requests    *uint32 `json:"requests,omitempty"`
	Retries     *uint32 `json:"retries,omitempty"`
}

func dumpLimits(l *config.Limits) *limitsDump {
	if l == nil {
		return nil
	}
	bound := func(n uint32) *uint32 {
		if n == config.Unlimited {
			return nil
		}
		return &n
	}
	return &limitsDump{bound(l.Connections), bound(l.Pending), bound(l.Requests), bound(l.Retries)}
}

type endpointDump struct {
	Address     string `json:"address"`
	Priority    int    `json:"priority"`
	Locality    string `json:"locality,omitempty"` // region/zone/subzone
	Health      string `json:"health"`             // as the control plane says
	Identity    string `json:"identity,omitempty"`
	HBONE       bool   `json:"hbone"`
	Workload    string `json:"workload,omitempty"`
	Active      int    `json:"active"` // requests and connections under way
	Connections int    `json:"connections"`
	PassedOver  bool   `json:"passedOver,omitempty"` // since it could not be connected to, or is ejected
	Ejected     bool   `json:"ejected,omitempty"`    // since its responses were bad
}

// dumpClusters shows all endpoints that the control plane names, with what is known of those that can be chosen.
func (p *parts) dumpClusters(w io.Writer) error {
	now := p.store.Load()
	var all []clusterDump
	p.clusters.All(func(c *upstream.Cluster) {
		d := clusterDump{Name: c.Name(), Requests: c.Requests(), Waiting: c.Waiting(), Limits: dumpLimits(c.Settings().Limits), Endpoints: []endpointDump{}}
		live := map[netip.AddrPort]*upstream.Endpoint{}
		c.Endpoints(func(e *upstream.Endpoint) { live[e.Addr()] = e })
		if cfg := now.Cluster(c.Name()); cfg != nil && cfg.Endpoints != nil {
			for i, priority := range cfg.Endpoints.Priorities {
				for _, l := range priority.Localities {
					for _, e := range l.Endpoints {
						d.Endpoints = append(d.Endpoints, dumpEndpoint(i, &l, e, live[e.Address]))
					}
				}
			}
		}
		all = append(all, d)
	})
	slices.SortFunc(all, func(a, b clusterDump) int { return cmp.Compare(a.Name, b.Name) })
	s := admin.NewStream(w)
	admin.List(s, "clusters", slices.Values(all))
	return s.Close()
}

// dumpEndpoint shows an endpoint. live is nil if it is not chosen.
func dumpEndpoint(priority int, l *config.Locality, e *config.Endpoint, live *upstream.Endpoint) endpointDump {
	one := endpointDump{Address: e.Address.String(), Priority: priority, Health: e.Health.String(), HBONE: e.HBONE, Workload: e.Workload.Name,
		Locality: strings.TrimRight(l.Region+"/"+l.Zone+"/"+l.SubZone, "/")}
	if !e.Identity.IsZero() {
		one.Identity = e.Identity.String()
	}
	if live != nil {
		one.Active, one.Connections, one.PassedOver, one.Ejected = live.Active(), live.Connections(), live.PassedOver(), live.Ejected()
	}
	return one
}

type listenerDump struct {
	Chain        string           `json:"chain"`
	Destinations []netip.AddrPort `json:"destinations"`
	Servers      []string         `json:"servers,omitempty"` // that clients of TLS ask for; "*" is all that no other chain has
	Protocol     string           `json:"protocol"`
	Routes       string           `json:"routes,omitempty"` // of HTTP: "ready", or "missing": requests wait for them
	Clusters     []string         `json:"clusters,omitempty"`
	Policies     int              `json:"policies"` // steps of authorization
	Tracing      *tracingDump     `json:"tracing,omitempty"`
}

type tracingDump struct {
	Collector string  `json:"collector"`
	Sampling  float64 `json:"sampling"` // 0 to 1
}

// dumpListeners shows what is served where.
func (p *parts) dumpListeners(w io.Writer) error {
	now := p.store.Load()
	at, servers := map[*config.Chain][]netip.AddrPort{}, map[*config.Chain][]string{}
	serves := func(c *config.Chain, dst netip.AddrPort) {
		if !slices.Contains(at[c], dst) {
			at[c] = append(at[c], dst)
		}
	}
	for _, dst := range now.Destinations() {
		c := now.Chain(dst)
		if c == nil || c.Names == nil {
			serves(c, dst)
			continue
		}
		for name, c := range c.Names.All() {
			if c == nil {
				continue
			}
			serves(c, dst)
			if !slices.Contains(servers[c], name) {
				servers[c] = append(servers[c], name)
			}
		}
	}
	var all []listenerDump
	for _, c := range now.Chains() {
		d := listenerDump{Chain: c.Name, Destinations: at[c], Servers: servers[c], Policies: len(c.Authorization)}
		switch {
		case c.HTTP != nil:
			d.Protocol, d.Routes = "http", "ready"
			if now.Routes(c.HTTP.Routes) == nil {
				d.Routes = "missing"
			}
			if t := c.HTTP.Tracing; t != nil {
				d.Tracing = &tracingDump{t.Collector.Cluster, t.Sampling}
			}
		default:
			d.Protocol, d.Clusters = "tcp", c.TCP.Clusters
		}
		all = append(all, d)
	}
	s := admin.NewStream(w)
	if t := now.Terminate(); t != nil {
		s.Member("tunnelPort", t.Port)
	}
	admin.List(s, "listeners", slices.Values(all))
	return s.Close()
}

func (p *parts) dumpStats(w io.Writer) error {
	s := admin.NewStream(w)
	s.Member("tunnels", p.proxy.Open())
	c := p.proxy.Counts()
	s.Member("connectionsHTTP", c.HTTP.Load())
	s.Member("connectionsTCP", c.TCP.Load())
	s.Member("connectionsRefused", c.Refused.Load())
	s.Member("retries", c.Retries.Load())
	s.Member("mirrorsDropped", c.MirrorsDropped.Load())
	s.Member("upstreamTunnels", p.tunnels.Stats())
	return s.Close()
}
