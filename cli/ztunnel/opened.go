package ztunnel

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/kube"
)

// Opened is a connection that a captured pod has opened, and that has not ended.
type Opened struct {
	// Pod is namespace/name.
	Pod string
	// To is what the pod connected to, By where its node proxy has brought it: an endpoint, or a waypoint.
	To, By netip.AddrPort
}

// MostAsked is how many node proxies Connections asks: each answers with all that it knows.
const MostAsked = 64

// ErrTooMany says that there are more node proxies than MostAsked.
var ErrTooMany = fmt.Errorf("there are more than %d node proxies", MostAsked)

// Connections asks all node proxies of the mesh in a namespace for the connections that pods have opened. The error says that some did
// not answer, and comes with what the others said.
func Connections(ctx context.Context, cluster *kube.Cluster, mesh string) ([]Opened, error) {
	all, err := proxies(ctx, cluster.Kubernetes, mesh)
	if err != nil {
		return nil, err
	}
	if len(all) > MostAsked {
		return nil, ErrTooMany
	}
	o := &options{port: api.PortAdmin}
	targets := withBeside(perNode(all), all)
	dumps, errs := each(targets, func(t *target) (*dump, error) { return o.ask(ctx, cluster, t) })
	var opened []Opened
	var failed error
	for i, d := range dumps {
		if errs[i] != nil {
			if failed == nil && !targets[i].beside {
				failed = errs[i]
			}
			continue
		}
		for _, r := range d.pods() {
			for _, c := range r.Value.Connections.Outbound {
				to, err := netip.ParseAddrPort(c.Value.OriginalDst)
				by, err2 := netip.ParseAddrPort(c.Value.ActualDst)
				if err == nil && err2 == nil {
					opened = append(opened, Opened{Pod: r.Value.Info.Namespace + "/" + r.Value.Info.Name, To: to, By: by})
				}
			}
		}
	}
	return opened, failed
}
