package proxy

import (
	"net/netip"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// told is what is told of the requests of a connection, and of itself, by a snapshot.
type told struct {
	by      *config.Snapshot
	tracing *config.Tracing // may be nil
	logging *config.Logging // may be nil
}

// told returns what is told by a snapshot.
func (c *connection) told(s *config.Snapshot) *told {
	if t := c.tells.Load(); t != nil && t.by == s {
		return t
	}
	t := &told{by: s}
	if chain := c.now(s); chain != nil {
		t.logging = chain.Logging
		if chain.HTTP != nil {
			t.tracing = chain.HTTP.Tracing
		}
	}
	c.tells.Store(t)
	return t
}

// wanted tells whether something is logged: what a policy asks for in any case; else by the chain's own settings, and where these say
// nothing if it went badly, or for a sample.
func (c *connection) wanted(e entry, bad, audited bool) bool {
	if audited {
		return true
	}
	if how := c.told(c.proxy.snapshot.Load()).logging; how != nil {
		asked := e // which is on the heap only where it is asked for
		return how.Wants(&asked)
	}
	return bad || c.proxy.sampled()
}

// entry is what there is to be logged, for filters to ask.
type entry struct {
	c        *connection
	r        *request // nil: a connection, or a request that could not be read
	status   int      // 0: there is none
	cluster  *upstream.Cluster
	endpoint *upstream.Endpoint
	took     time.Duration
}

// Attribute is of logfilter.Entry.
func (e *entry) Attribute(name string) any {
	object, field, _ := strings.Cut(name, ".")
	switch object {
	case "request":
		if e.r != nil {
			return e.request(field)
		}
	case "response":
		return e.response(field)
	case "connection":
		if field == "mtls" {
			return e.c.principal != ""
		}
		return known(e.c.principal)
	case "source":
		return address(field, e.c.client)
	case "destination":
		return address(field, e.c.destination)
	case "upstream":
		if e.endpoint != nil {
			return address(field, e.endpoint.Addr())
		}
	case "xds":
		return e.resource(field)
	}
	return nil
}

// request is an attribute of the request.
func (e *entry) request(field string) any {
	r := e.r
	req := &r.x.Request
	path, query, _ := strings.Cut(r.path, "?")
	switch field {
	case "path":
		return r.path
	case "url_path":
		return path
	case "query":
		return query
	case "host":
		return r.authority
	case "scheme":
		return req.Scheme
	case "method":
		return r.method
	case "protocol":
		return req.Proto.String()
	case "headers":
		all := make(map[string]string, len(req.Header))
		for _, f := range req.Header {
			all[f.Name], _ = req.Header.Joined(f.Name)
		}
		return all
	case "referer":
		return known(req.Header.Get("referer"))
	case "useragent":
		return known(req.Header.Get("user-agent"))
	case "id":
		return known(req.Header.Get("x-request-id"))
	case "time":
		return r.start
	case "duration":
		return e.took
	case "size":
		return r.x.Received()
	}
	return nil
}

// response is an attribute of the response.
func (e *entry) response(field string) any {
	if field == "code" && e.status > 0 {
		return int64(e.status)
	}
	if e.r == nil {
		return nil
	}
	switch {
	case field == "grpc_status" && e.r.grpc && e.r.result != telemetry.NoGRPC:
		return int64(e.r.result)
	case field == "size":
		return e.r.x.Sent()
	case field == "backend_latency" && e.r.answered > 0:
		return e.r.answered
	}
	return nil
}

// resource is the name of what the control plane has said.
func (e *entry) resource(field string) any {
	switch {
	case field == "filter_chain_name":
		return e.c.chain.Name
	case field == "cluster_name" && e.cluster != nil:
		return e.cluster.Name()
	case field == "route_name" && e.r != nil && e.r.route != nil:
		return e.r.route.Name
	}
	return nil
}

// address is a part of an address.
func address(field string, a netip.AddrPort) any {
	if field == "port" {
		return int64(a.Port())
	}
	return known(a.String())
}

// known is a text, nil if it is empty.
func known(s string) any {
	if s == "" {
		return nil
	}
	return s
}
