package state

import (
	"maps"
	"slices"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// setTelemetry takes a Telemetry, nil if it is gone. There are few, and they change seldom: all services are looked at then.
func (s *State) setTelemetry(key cluster.Key, t *cluster.Telemetry) {
	old := s.views.telemetries[key]
	if old == nil && t == nil || old != nil && t != nil && old.Equal(t) {
		return
	}
	if t == nil {
		delete(s.views.telemetries, key)
	} else {
		s.views.telemetries[key] = t
	}
	s.dirtyViews.telemetries[key] = struct{}{}
	s.touchTelemetry()
}

// touchTelemetry marks what depends on any Telemetry.
func (s *State) touchTelemetry() {
	for ref := range s.views.fronts {
		s.dirtyViews.fronts[ref] = struct{}{}
	}
	for k := range s.views.telemetries {
		s.dirtyViews.telemetries[k] = struct{}{}
	}
}

// telemetry is what is told of the requests to a service at a waypoint.
func (s *State) telemetry(ref cluster.ObjectRef, gateway cluster.Key) l7.Telemetry {
	return l7.TelemetryFor(s.mesh, slices.Collect(maps.Values(s.views.telemetries)), ref, gateway)
}

// told are the services of those who are told of the requests to a service at a waypoint.
func (c *collector) told(ref cluster.ObjectRef, gateway cluster.Key) []cluster.ObjectRef {
	s := c.state
	if collector, ok := s.telemetry(ref, gateway).Collector(s.mesh, seen{c, gateway}); ok {
		return []cluster.ObjectRef{collector}
	}
	return nil
}

// telemetryStatus says what became of a Telemetry.
func (c *collector) telemetryStatus(k cluster.Key) {
	s := c.state
	if t := s.views.telemetries[k]; t != nil {
		s.report.Statuses = append(s.report.Statuses, l7.TelemetryStatus(s.mesh, t, slices.SortedFunc(maps.Values(s.views.telemetries), cluster.CompareTelemetries), seen{c, cluster.Key{Namespace: k.Namespace}}))
		return
	}
	s.gone(object{cluster.KindTelemetry, k}, authz.WaypointConditionType)
}
