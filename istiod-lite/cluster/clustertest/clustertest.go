// Package clustertest reads cluster objects from YAML, for tests whose input is what a user would write.
package clustertest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/authn"
	"github.com/ambit-mesh/ambit/mesh/jwks"
)

// Parse reads the documents of a YAML stream.
func Parse(text []byte) ([]cluster.Object, error) {
	var out []cluster.Object
	dec := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		var text json.RawMessage
		if err := dec.Decode(&text); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, fmt.Errorf("parse objects: %w", err)
		}
		var u unstructured.Unstructured
		if err := utiljson.Unmarshal(text, &u.Object); err != nil { // whole numbers as clients of the API have them
			return nil, fmt.Errorf("parse objects: %w", err)
		}
		if len(u.Object) == 0 {
			continue
		}
		o, err := reduce(&u)
		if err != nil {
			return nil, fmt.Errorf("parse %s %s/%s: %w", u.GetKind(), u.GetNamespace(), u.GetName(), err)
		}
		out = append(out, o)
	}
}

func reduce(u *unstructured.Unstructured) (cluster.Object, error) {
	switch cluster.Kind(u.GetKind()) {
	case cluster.KindPod:
		return as(u, &corev1.Pod{}, cluster.PodOf)
	case cluster.KindService:
		return as(u, &corev1.Service{}, cluster.ServiceOf)
	case cluster.KindEndpointSlice:
		return as(u, &discoveryv1.EndpointSlice{}, cluster.EndpointSliceOf)
	case cluster.KindNode:
		return as(u, &corev1.Node{}, cluster.NodeOf)
	case cluster.KindNamespace:
		return as(u, &corev1.Namespace{}, cluster.NamespaceOf)
	case cluster.KindConfigMap:
		if data, _, _ := unstructured.NestedStringMap(u.Object, "data"); data[cluster.BundleKey] != "" {
			return as(u, &corev1.ConfigMap{}, cluster.BundleOf)
		}
		return as(u, &corev1.ConfigMap{}, cluster.ConfigMapOf)
	case cluster.KindPeerAuthentication:
		return cluster.PeerAuthenticationOf(u), nil
	case cluster.KindAuthorizationPolicy:
		return cluster.AuthorizationPolicyOf(u), nil
	case cluster.KindRequestAuthentication:
		return cluster.RequestAuthenticationOf(u), nil
	case cluster.KindKeySet:
		return keySet(u)
	case cluster.KindServiceEntry:
		return cluster.ServiceEntryOf(u), nil
	case cluster.KindWorkloadEntry:
		return cluster.WorkloadEntryOf(u), nil
	case cluster.KindDeployment:
		return as(u, &appsv1.Deployment{}, cluster.DeploymentOf)
	case cluster.KindGateway:
		return cluster.GatewayOf(u), nil
	case cluster.KindGatewayClass:
		return cluster.GatewayClassOf(u), nil
	case cluster.KindMesh:
		return cluster.MeshOf(u), nil
	case cluster.KindHTTPRoute:
		return cluster.HTTPRouteOf(u), nil
	case cluster.KindGRPCRoute:
		return cluster.GRPCRouteOf(u), nil
	case cluster.KindTLSRoute:
		return cluster.TLSRouteOf(u), nil
	case cluster.KindTCPRoute:
		return cluster.TCPRouteOf(u), nil
	case cluster.KindDestinationRule:
		return cluster.DestinationRuleOf(u), nil
	case cluster.KindVirtualService:
		return cluster.VirtualServiceOf(u), nil
	case cluster.KindTelemetry:
		return cluster.TelemetryOf(u), nil
	case cluster.KindBackendTLSPolicy:
		return cluster.BackendTLSPolicyOf(u), nil
	case cluster.KindBackendTraffic:
		return cluster.BackendTrafficPolicyOf(u), nil
	case cluster.KindWaypointPolicy:
		return cluster.WaypointPolicyOf(u), nil
	}
	return nil, errors.New("kind is not known")
}

// keySet reads what nobody writes for an API server: spec has the fields of authn.Source, jwks and fault.
func keySet(u *unstructured.Unstructured) (cluster.Object, error) {
	text := func(field string) string {
		s, _, _ := unstructured.NestedString(u.Object, "spec", field)
		return s
	}
	out := &cluster.KeySet{Source: authn.Source{URI: text("uri"), Issuer: text("issuer")}, Fault: text("fault")}
	if text("jwks") == "" {
		return out, nil
	}
	var err error
	out.Set, _, err = jwks.Parse([]byte(text("jwks")))
	return out, err
}

func as[O any, N cluster.Object](u *unstructured.Unstructured, typed *O, reduce func(*O) N) (cluster.Object, error) {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(u.Object, typed, true); err != nil {
		return nil, err
	}
	return reduce(typed), nil
}

// Snapshot puts objects together. Of objects with the same name the last counts.
func Snapshot(mesh translate.Mesh, objects []cluster.Object) translate.Snapshot {
	type id struct {
		kind cluster.Kind
		key  cluster.Key
	}
	last := map[id]int{}
	for i, o := range objects {
		last[id{o.ObjectKind(), o.ObjectKey()}] = i
	}
	s := translate.Snapshot{Mesh: mesh}
	for i, o := range objects {
		if last[id{o.ObjectKind(), o.ObjectKey()}] != i {
			continue
		}
		switch o := o.(type) {
		case *cluster.Namespace:
			s.Namespaces = append(s.Namespaces, o)
		case *cluster.Node:
			s.Nodes = append(s.Nodes, o)
		case *cluster.Pod:
			s.Pods = append(s.Pods, o)
		case *cluster.Service:
			s.Services = append(s.Services, o)
		case *cluster.EndpointSlice:
			s.EndpointSlices = append(s.EndpointSlices, o)
		case *cluster.PeerAuthentication:
			s.PeerAuthentications = append(s.PeerAuthentications, o)
		case *cluster.AuthorizationPolicy:
			s.AuthorizationPolicies = append(s.AuthorizationPolicies, o)
		case *cluster.RequestAuthentication:
			s.RequestAuthentications = append(s.RequestAuthentications, o)
		case *cluster.KeySet:
			s.KeySets = append(s.KeySets, o)
		case *cluster.ServiceEntry:
			s.ServiceEntries = append(s.ServiceEntries, o)
		case *cluster.WorkloadEntry:
			s.WorkloadEntries = append(s.WorkloadEntries, o)
		case *cluster.Gateway:
			s.Gateways = append(s.Gateways, o)
		case *cluster.GatewayClass:
			s.GatewayClasses = append(s.GatewayClasses, o)
		case *cluster.Deployment:
			s.Deployments = append(s.Deployments, o)
		case *cluster.Route:
			s.Routes = append(s.Routes, o)
		case *cluster.DestinationRule:
			s.DestinationRules = append(s.DestinationRules, o)
		case *cluster.VirtualService:
			s.VirtualServices = append(s.VirtualServices, o)
		case *cluster.Telemetry:
			s.Telemetries = append(s.Telemetries, o)
		case *cluster.BackendTLSPolicy:
			s.BackendTLSPolicies = append(s.BackendTLSPolicies, o)
		case *cluster.BackendTrafficPolicy:
			s.TrafficPolicies = append(s.TrafficPolicies, o)
		case *cluster.WaypointPolicy:
			s.WaypointPolicies = append(s.WaypointPolicies, o)
		case *cluster.Bundle:
			s.Bundles = append(s.Bundles, o)
		}
	}
	return s
}
