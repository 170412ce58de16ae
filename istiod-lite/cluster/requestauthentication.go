package cluster

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/mesh/authn"
	"github.com/ambit-mesh/ambit/mesh/authz"
	"github.com/ambit-mesh/ambit/mesh/jwks"
)

// RequestAuthentication says whose tokens requests may have.
type RequestAuthentication struct {
	Key
	Generation int64
	// Policy is what it says.
	Policy *authn.Policy
	// Seen is the condition that the object has of the type that the control plane writes.
	Seen Condition
}

// ObjectKind is KindRequestAuthentication.
func (*RequestAuthentication) ObjectKind() Kind { return KindRequestAuthentication }

// ObjectKey is namespace and name.
func (p *RequestAuthentication) ObjectKey() Key { return p.Key }

// Equal reports whether both are the same in every field.
func (p *RequestAuthentication) Equal(o *RequestAuthentication) bool {
	return p.Key == o.Key && p.Generation == o.Generation && p.Seen == o.Seen && p.Policy.Equal(o.Policy)
}

// RequestAuthenticationOf reduces a RequestAuthentication.
func RequestAuthenticationOf(in *unstructured.Unstructured) *RequestAuthentication {
	return &RequestAuthentication{
		Key:        Key{in.GetNamespace(), in.GetName()},
		Generation: in.GetGeneration(),
		Policy:     authn.Read(in.GetNamespace(), in.GetName(), in.Object["spec"]),
		Seen:       seenBy(in, authz.WaypointConditionType),
	}
}

// KeySet is what an issuer of tokens publishes. It is no object of the API server: the control plane fetches it.
type KeySet struct {
	Source authn.Source
	// Set is the last that could be had, nil if none could.
	Set *jwks.Set
	// Fault is why it could not be had the last time, "" if it could.
	Fault string
}

// KeySetKey is the key of the KeySet of a source. Its parts are no names of Kubernetes.
func KeySetKey(s authn.Source) Key { return Key{s.Issuer, s.URI} }

// ObjectKind is KindKeySet.
func (*KeySet) ObjectKind() Kind { return KindKeySet }

// ObjectKey is that of its source.
func (k *KeySet) ObjectKey() Key { return KeySetKey(k.Source) }

// Equal reports whether both say the same.
func (k *KeySet) Equal(o *KeySet) bool {
	return k.Source == o.Source && k.Fault == o.Fault && (k.Set == nil) == (o.Set == nil) && k.Set.String() == o.Set.String()
}
