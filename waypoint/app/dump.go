package app

import (
	"cmp"
	"io"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/mesh/admin"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// pages are what the loopback endpoint shows of a waypoint.
func (p *parts) pages() []admin.Page {
	return []admin.Page{
		{Path: "config_dump", About: "what the control plane has said, as JSON, in Envoy's shape", Write: p.dumpConfig},
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
	Requests  int            `json:"requests"` // under way
	Endpoints []endpointDump `json:"endpoints"`
}

type endpointDump struct {
	Address     string `json:"address"`
	Identity    string `json:"identity,omitempty"`
	HBONE       bool   `json:"hbone"`
	Workload    string `json:"workload,omitempty"`
	Active      int    `json:"active"`
	Connections int    `json:"connections"`
	PassedOver  bool   `json:"passedOver,omitempty"`
}

func (p *parts) dumpClusters(w io.Writer) error {
	var all []clusterDump
	p.clusters.All(func(c *upstream.Cluster) {
		d := clusterDump{Name: c.Name(), Requests: c.Requests(), Endpoints: []endpointDump{}}
		c.Endpoints(func(e *upstream.Endpoint) {
			one := endpointDump{Address: e.Addr().String(), HBONE: e.HBONE(), Workload: e.Workload().Name, Active: e.Active(),
				Connections: e.Connections(), PassedOver: e.PassedOver()}
			if id := e.Identity(); !id.IsZero() {
				one.Identity = id.String()
			}
			d.Endpoints = append(d.Endpoints, one)
		})
		all = append(all, d)
	})
	slices.SortFunc(all, func(a, b clusterDump) int { return cmp.Compare(a.Name, b.Name) })
	s := admin.NewStream(w)
	admin.List(s, "clusters", slices.Values(all))
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
