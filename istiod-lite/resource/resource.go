// Package resource holds what is sent to data planes in the form in which it is sent: encoded once, named by the hash of its
// content, and shared by all connections. Values are immutable.
package resource

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/cespare/xxhash/v2"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Type is a kind of resource. The order of the values is that in which a push sends new ones: what is named before what
// names it.
type Type uint8

// The types.
const (
	// Authorization is istio.security.Authorization.
	Authorization Type = iota
	// Settings is ambit.v1.Settings, which only data planes of ours ask for. Policies come before it: they must know a trust
	// domain before its peers are let in.
	Settings
	// Address is istio.workload.Address: a workload or a service.
	Address
	// Cluster, Endpoints, Listener and Routes are Envoy's, which waypoints are told.
	Cluster
	Endpoints
	Listener
	Routes
	// Types is their number.
	Types = iota
)

const typePrefix = "type.googleapis.com/"

// typeNames are the protobuf names of the types.
var typeNames = [Types]string{
	"istio.security.Authorization", "ambit.v1.Settings", "istio.workload.Address", "envoy.config.cluster.v3.Cluster",
	"envoy.config.endpoint.v3.ClusterLoadAssignment", "envoy.config.listener.v3.Listener", "envoy.config.route.v3.RouteConfiguration",
}

// URL is the type URL of discovery requests and responses.
func (t Type) URL() string { return typePrefix + typeNames[t] }

// String is the short name: what follows the last dot.
func (t Type) String() string { return typeNames[t][strings.LastIndexByte(typeNames[t], '.')+1:] }

// TypeOf returns the type with that URL.
func TypeOf(url string) (Type, bool) {
	for t := range Type(Types) {
		if t.URL() == url {
			return t, true
		}
	}
	return 0, false
}

// Resource is one resource.
type Resource struct {
	Type Type
	// Name is the key, unique within the type.
	Name string
	// Version is a hash of the content: the same from each replica and after each restart, different after each change.
	Version string
	// Framed is the encoded envoy.service.discovery.v3.Resource as the element of a delta response's list that it is sent
	// as: a response is the concatenation of such elements and a few fields more.
	Framed []byte
}

// fieldResources is the number of DeltaDiscoveryResponse.resources.
const fieldResources = 2

// New encodes a resource.
func New(t Type, name string, content proto.Message) (*Resource, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(content)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", t, name, err)
	}
	r := &Resource{Type: t, Name: name, Version: versionOf(body)}
	d := &discoveryv3.Resource{Name: name, Version: r.Version, Resource: &anypb.Any{TypeUrl: t.URL(), Value: body}}
	size := proto.Size(d)
	r.Framed = make([]byte, 0, protowire.SizeTag(fieldResources)+protowire.SizeBytes(size))
	r.Framed = protowire.AppendTag(r.Framed, fieldResources, protowire.BytesType)
	r.Framed = protowire.AppendVarint(r.Framed, uint64(size))
	if r.Framed, err = (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend(r.Framed, d); err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", t, name, err)
	}
	return r, nil
}

// versionOf names content by 64 bits of hash. Versions are compared under one name only, so that a collision would need two
// successive states of one object that collide.
func versionOf(body []byte) string {
	var sum [8]byte
	binary.BigEndian.PutUint64(sum[:], xxhash.Sum64(body))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Decode reads the content of a resource back, for people to look at.
func (r *Resource) Decode(into proto.Message) error {
	var d discoveryv3.DeltaDiscoveryResponse
	if err := proto.Unmarshal(r.Framed, &d); err != nil {
		return fmt.Errorf("decode %s %s: %w", r.Type, r.Name, err)
	}
	if err := proto.Unmarshal(d.GetResources()[0].GetResource().GetValue(), into); err != nil {
		return fmt.Errorf("decode %s %s: %w", r.Type, r.Name, err)
	}
	return nil
}

// Change is one step from a consistent state of the mesh to the next.
type Change struct {
	// Upserts are new or differ from what was there.
	Upserts []*Resource
	// Removed are gone.
	Removed []Name
	// Views are the waypoints that are told something else than before. Whatever is in them is in neither of the above.
	Views []View
}

// View is one step of what the waypoint of a Gateway is told.
type View struct {
	// Gateway is "namespace/name". Account is the service account that the waypoint must have, "namespace/name".
	Gateway, Account string
	// Upserts are new or differ from what was there. They may be shared with other views. The first step has the whole state.
	Upserts []*Resource
	// Removed are gone.
	Removed []Name
	// Gone says that there is no such waypoint any more; nothing else is said then.
	Gone bool
}

// Name names a resource.
type Name struct {
	Type Type
	Name string
}

// Empty reports whether nothing changed.
func (c Change) Empty() bool { return len(c.Upserts) == 0 && len(c.Removed) == 0 && len(c.Views) == 0 }
