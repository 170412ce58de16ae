// Package translate turns objects of a cluster into what data planes are told: nouns in, resources and problems out. It does
// no I/O, keeps no state, has no clock and never logs, so equal input gives equal output. The functions here take one object
// and what it depends on; All puts them together for a whole cluster, and is the definition that the incremental state
// must agree with.
package translate

import (
	"slices"

	"google.golang.org/protobuf/proto"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// Mesh is what every translation depends on.
type Mesh struct {
	// ClusterID is the first part of workload keys.
	ClusterID string
	// ClusterDomain is the DNS domain of services.
	ClusterDomain string
	// TrustDomain is the first part of identities.
	TrustDomain string
	// TrustDomainAliases are other trust domains whose identities count as the mesh's own.
	TrustDomainAliases []string
	// RegistryOnly refuses connections to addresses that the mesh does not know.
	RegistryOnly bool
	// RootNamespace is where mesh-wide policy lives.
	RootNamespace string
	// Network is the network of this cluster's pods, "" if the mesh has one network only.
	Network string
	// Providers are the external authorizers, tracers and the like that policies name. DefaultTracers are those of spans where nothing
	// else is said, DefaultLoggers those of the access log.
	Providers                      []*meshv1alpha1.MeshConfig_ExtensionProvider
	DefaultTracers, DefaultLoggers []string
}

// Equal reports whether both are the same in every field.
func (m Mesh) Equal(o Mesh) bool {
	return m.ClusterID == o.ClusterID && m.ClusterDomain == o.ClusterDomain && m.TrustDomain == o.TrustDomain &&
		slices.Equal(m.TrustDomainAliases, o.TrustDomainAliases) && m.RegistryOnly == o.RegistryOnly &&
		m.RootNamespace == o.RootNamespace && m.Network == o.Network &&
		slices.EqualFunc(m.Providers, o.Providers, func(a, b *meshv1alpha1.MeshConfig_ExtensionProvider) bool { return proto.Equal(a, b) }) &&
		slices.Equal(m.DefaultTracers, o.DefaultTracers) && slices.Equal(m.DefaultLoggers, o.DefaultLoggers)
}

// Settings is what data planes of ours are told of the mesh itself.
func Settings(m Mesh) *extension.Settings {
	s := &extension.Settings{TrustDomain: m.TrustDomain, TrustDomainAliases: m.TrustDomainAliases}
	if m.RegistryOnly {
		s.OutboundPolicy = extension.Settings_REGISTRY_ONLY
	}
	return s
}

// Problem is a fault of one object, for whoever wrote the object. It never keeps others from being translated.
type Problem struct {
	Kind    cluster.Kind
	Key     cluster.Key
	Message string
}

// Faults lists the faults that were found when an object was reduced.
func Faults(o cluster.Object, faults []string) []Problem {
	var out []Problem
	for _, f := range faults {
		out = append(out, Problem{o.ObjectKind(), o.ObjectKey(), f})
	}
	return out
}

// unless returns v, or "" where v is the default that receivers assume.
func unless(v, def string) string {
	if v == def {
		return ""
	}
	return v
}

func (m Mesh) trustDomain() string { return unless(m.TrustDomain, api.DefaultTrustDomain) }
func (m Mesh) clusterID() string   { return unless(m.ClusterID, api.DefaultClusterID) }
