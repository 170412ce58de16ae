package requests

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/mesh/hbone"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
	"github.com/ambit-mesh/ambit/mesh/thrift"
	"github.com/ambit-mesh/ambit/mesh/xds"
	"github.com/ambit-mesh/ambit/waypoint/app"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/proxy"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// serveWaypoint is our L7 proxy without tunnels: the rooms of the waypoint from a client's connection to a backend's, configured by
// the same resources. It serves until ctx ends.
func serveWaypoint(ctx context.Context, ln net.Listener, backend string) error {
	tunnels := hbone.NewPool(hbone.PoolConfig{}) // none is opened
	defer tunnels.Close()
	clusters := upstream.New(upstream.Config{Tunnels: tunnels})
	defer clusters.Close()
	p := proxy.New(proxy.Config{
		Clusters: clusters, Requests: telemetry.NewRequests("waypoint", prometheus.NewRegistry()),
		AccessLog: slog.New(slog.DiscardHandler), Logger: slog.New(slog.DiscardHandler),
	})
	defer p.Close()
	store := config.NewStore(func(_, next *config.Snapshot) {
		clusters.Apply(next)
		p.Apply(next)
	})
	host, port, err := net.SplitHostPort(backend)
	if err != nil {
		return err
	}
	for _, r := range []struct{ typeURL, name, text string }{
		{xds.TypeCluster, "stock", clusterYAML},
		{xds.TypeEndpoints, "stock", fmt.Sprintf(endpointsYAML, host, port)},
		{xds.TypeListener, "main_internal", listenerYAML},
		{xds.TypeRoutes, "web", routesYAML},
	} {
		resource, err := resourceOf(r.typeURL, r.name, r.text)
		if err != nil {
			return err
		}
		for _, h := range store.Handlers() {
			if h.TypeURL != r.typeURL {
				continue
			}
			for _, bad := range h.Apply([]*discoveryv3.Resource{resource}, nil) {
				return fmt.Errorf("%s %s: %w", r.typeURL, bad.Name, bad.Err)
			}
		}
	}
	var rooms sync.WaitGroup
	defer rooms.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rooms.Go(func() { _ = thrift.Collector(ctx, app.MuchGarbage) }) // it returns nil
	if err := thrift.Program(); err != nil {
		return err
	}
	return p.ServePlain(ctx, ln, netip.MustParseAddrPort("10.96.0.1:80"))
}

// resourceOf makes a resource of YAML.
func resourceOf(typeURL, name, text string) (*discoveryv3.Resource, error) {
	var fields map[string]any
	if err := yaml.Unmarshal([]byte(text), &fields); err != nil {
		return nil, fmt.Errorf("%s %s: %w", typeURL, name, err)
	}
	fields["@type"] = typeURL
	b, err := json.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", typeURL, name, err)
	}
	var a anypb.Any
	if err := protojson.Unmarshal(b, &a); err != nil {
		return nil, fmt.Errorf("%s %s: %w", typeURL, name, err)
	}
	return &discoveryv3.Resource{Name: name, Version: "1", Resource: &a}, nil
}

// serveReverse is a reverse proxy of net/http: each request goes on in the version that it came in. dial connects to the backend.
func serveReverse(ctx context.Context, ln net.Listener, backend string, dial func(ctx context.Context, network, addr string) (net.Conn, error)) error {
	transport := func(set func(*http.Protocols)) *http.Transport {
		t := &http.Transport{MaxIdleConns: 2000, MaxIdleConnsPerHost: 2000, DisableCompression: true, Protocols: new(http.Protocols), DialContext: dial}
		set(t.Protocols)
		return t
	}
	one := transport(func(p *http.Protocols) { p.SetHTTP1(true) })
	two := transport(func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) })
	to := &url.URL{Scheme: "http", Host: backend}
	server := &http.Server{Protocols: new(http.Protocols), ReadHeaderTimeout: time.Minute, Handler: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host
		},
		Transport: byVersion{one, two},
	}}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(ln); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// byVersion sends a request in the version of the client's.
type byVersion struct{ one, two *http.Transport }

func (b byVersion) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.ProtoMajor == 2 {
		return b.two.RoundTrip(r)
	}
	return b.one.RoundTrip(r)
}
