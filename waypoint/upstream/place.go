package upstream

import "github.com/ambit-mesh/ambit/waypoint/config"

// Place is where a proxy runs. The zero Place is not known, and near to nothing.
type Place struct{ Node, Region, Zone, SubZone string }

// SetPlace says where this proxy runs. It holds for the choice of endpoints from then on; connections stay.
func (m *Clusters) SetPlace(p Place) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.place == p {
		return
	}
	m.place = p
	for _, c := range m.byName.All() {
		if len(c.cfg.Settings.Prefer) > 0 {
			c.apply(c.cfg)
		}
	}
}

// arrange puts priorities in the place of each, by how much of what is preferred its endpoints have in common with p. All of a cluster's
// endpoints stay in it.
func (p Place) arrange(prefer []config.Scope, priorities []config.Priority) []config.Priority {
	if len(prefer) == 0 || p == (Place{}) {
		return priorities
	}
	var out []config.Priority
	for _, from := range priorities {
		ranks := make([]config.Priority, len(prefer)+1)
		for _, l := range from.Localities {
			parts := make([]config.Locality, len(ranks))
			for _, e := range l.Endpoints {
				missing := p.missing(prefer, &l, e)
				parts[missing].Endpoints = append(parts[missing].Endpoints, e)
			}
			for i, part := range parts {
				if len(part.Endpoints) > 0 {
					part.Region, part.Zone, part.SubZone, part.Weight = l.Region, l.Zone, l.SubZone, l.Weight
					ranks[i].Localities = append(ranks[i].Localities, part)
				}
			}
		}
		out = append(out, ranks...)
	}
	return out
}

// missing counts what an endpoint has not in common with p: from the first that it has not, all count.
func (p Place) missing(prefer []config.Scope, l *config.Locality, e *config.Endpoint) int {
	for i, scope := range prefer {
		var same bool
		switch scope {
		case config.Region:
			same = p.Region == l.Region
		case config.Zone:
			same = p.Zone == l.Zone
		case config.SubZone:
			same = p.SubZone == l.SubZone
		case config.Node:
			same = p.Node == e.Node
		}
		if !same {
			return len(prefer) - i
		}
	}
	return 0
}
