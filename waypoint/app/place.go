package app

import (
	"fmt"
	"slices"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/xds"
	"github.com/ambit-mesh/ambit/waypoint/upstream"
)

// workloadHandler takes the workloads whose own addresses are served, and learns where this waypoint runs from what the control plane
// says of its pod. Nothing waits for it.
func (p *parts) workloadHandler() xds.Handler {
	return xds.Handler{TypeURL: xds.TypeAddress, Optional: true, Apply: func(upserts []*discoveryv3.Resource, removed []string) []xds.Rejection {
		rejected := p.store.ApplyWorkloads(upserts, removed)
		p.applyPlace(upserts, removed)
		return rejected
	}}
}

// applyPlace looks for the waypoint's own pod among workloads. The names of others say nothing to it. A pod that cannot be read was
// rejected before.
func (p *parts) applyPlace(upserts []*discoveryv3.Resource, removed []string) {
	own := fmt.Sprintf("%s//Pod/%s/%s", p.settings.ClusterID, p.settings.PodNamespace, p.settings.PodName)
	if slices.Contains(removed, own) {
		p.clusters.SetPlace(upstream.Place{})
	}
	for _, r := range upserts {
		if r.GetName() != own {
			continue
		}
		var a workload.Address
		if err := r.GetResource().UnmarshalTo(&a); err != nil {
			continue
		}
		l := a.GetWorkload().GetLocality()
		place := upstream.Place{Node: a.GetWorkload().GetNode(), Region: l.GetRegion(), Zone: l.GetZone(), SubZone: l.GetSubzone()}
		p.logger.Info("this waypoint knows where it runs", "node", place.Node, "region", place.Region, "zone", place.Zone, "subzone", place.SubZone)
		p.clusters.SetPlace(place)
	}
}
