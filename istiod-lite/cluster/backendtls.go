package cluster

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api"
)

// BackendTLSPolicy says that backends are spoken to by TLS, and whom they must prove to be.
type BackendTLSPolicy struct {
	Key
	Created    time.Time
	Generation int64
	// Targets are what the policy is for, those that the mesh does not answer for included.
	Targets []PolicyTarget
	// Hostname is what the backend is asked for, and what it must prove to be unless Names say something else.
	Hostname string
	Names    []SubjectName
	// Authorities are the config maps that hold whom to trust, under BundleKey; System says to trust whom the system does.
	Authorities []Key
	System      bool
	// Strange are references to authorities of kinds that hold none.
	Strange []string
	// Faults are why the policy as a whole cannot be executed.
	Faults []string
	// Seen are the entries of status.ancestors that carry the controller name of the mesh.
	Seen []ParentStatus
}

// SubjectName is a name that a certificate may have: a DNS name, or a URI.
type SubjectName struct {
	URI   bool
	Value string
}

// PolicyTarget is an object, or a section of it, that a policy is for.
type PolicyTarget struct {
	Ref ObjectRef
	// Section is the name of a port, "" for the whole object.
	Section string
	// Written is how status refers to the target.
	Written gatewayv1.ParentReference
}

// Mesh reports whether the target is a service.
func (t PolicyTarget) Mesh() bool { return t.Ref.IsService() || t.Ref.IsEntry() }

// ObjectKind is KindBackendTLSPolicy.
func (*BackendTLSPolicy) ObjectKind() Kind { return KindBackendTLSPolicy }

// ObjectKey is namespace and name.
func (p *BackendTLSPolicy) ObjectKey() Key { return p.Key }

// Equal reports whether both are the same in every field.
func (p *BackendTLSPolicy) Equal(o *BackendTLSPolicy) bool {
	a, b := *p, *o
	a.Created, b.Created = time.Time{}, time.Time{}
	return p.Created.Equal(o.Created) && reflect.DeepEqual(a, b)
}

// BackendTLSPolicyOf reduces a BackendTLSPolicy.
func BackendTLSPolicyOf(in *unstructured.Unstructured) *BackendTLSPolicy {
	p := &BackendTLSPolicy{
		Key: Key{in.GetNamespace(), in.GetName()}, Created: in.GetCreationTimestamp().Time, Generation: in.GetGeneration(), Seen: ancestorsOf(in),
	}
	body, _ := in.Object["spec"].(map[string]any)
	var spec gatewayv1.BackendTLSPolicySpec
	err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(body, &spec, true)
	if strict, unknown := runtime.AsStrictDecodingError(err); unknown {
		for _, e := range strict.Errors() {
			p.fault("spec.%s is not known to this release", strings.Trim(strings.TrimPrefix(e.Error(), "unknown field "), `"`))
		}
	} else if err != nil {
		p.fault("spec: %v", explain(body, &spec, err))
		var targets gatewayv1.BackendTLSPolicySpec // so that they can be told
		if runtime.DefaultUnstructuredConverter.FromUnstructured(map[string]any{"targetRefs": body["targetRefs"]}, &targets) == nil {
			p.Targets = policyTargets(p.Namespace, targets.TargetRefs)
		}
		return p
	}
	p.Targets = policyTargets(p.Namespace, spec.TargetRefs)
	p.readValidation(spec.Validation)
	for option := range spec.Options {
		p.fault("spec.options: %q is not supported", option)
	}
	slices.Sort(p.Faults)
	return p
}

func (p *BackendTLSPolicy) fault(format string, args ...any) {
	p.Faults = append(p.Faults, fmt.Sprintf(format, args...))
}

// policyTargets reads what a policy of a namespace is for.
func policyTargets(namespace string, in []gatewayv1.LocalPolicyTargetReferenceWithSectionName) []PolicyTarget {
	var out []PolicyTarget
	for _, t := range in {
		group, kind, name := t.Group, t.Kind, t.Name
		out = append(out, PolicyTarget{
			Ref:     ObjectRef{groupOf(group), Kind(kind), Key{namespace, string(name)}},
			Written: gatewayv1.ParentReference{Group: &group, Kind: &kind, Name: name, SectionName: t.SectionName},
		})
		if t.SectionName != nil {
			out[len(out)-1].Section = string(*t.SectionName)
		}
	}
	return out
}

func (p *BackendTLSPolicy) readValidation(in gatewayv1.BackendTLSPolicyValidation) {
	if p.Hostname = strings.ToLower(string(in.Hostname)); p.Hostname == "" {
		p.fault("spec.validation.hostname: required")
	}
	for _, r := range in.CACertificateRefs {
		if groupOf(r.Group) != GroupCore || Kind(r.Kind) != KindConfigMap {
			p.Strange = append(p.Strange, fmt.Sprintf("%s %q", r.Kind, r.Name))
			continue
		}
		p.Authorities = append(p.Authorities, Key{p.Namespace, string(r.Name)})
	}
	switch w := in.WellKnownCACertificates; {
	case w == nil:
	case *w == gatewayv1.WellKnownCACertificatesSystem:
		p.System = true
	default:
		p.fault("spec.validation.wellKnownCACertificates: %q is not supported; there is %s", *w, gatewayv1.WellKnownCACertificatesSystem)
	}
	if p.System == (len(in.CACertificateRefs) > 0) && len(p.Faults) == 0 {
		p.fault("spec.validation: one of caCertificateRefs and wellKnownCACertificates is required, and not both")
	}
	for i, n := range in.SubjectAltNames {
		switch n.Type {
		case gatewayv1.HostnameSubjectAltNameType:
			p.Names = append(p.Names, SubjectName{Value: strings.ToLower(string(n.Hostname))})
		case gatewayv1.URISubjectAltNameType:
			p.Names = append(p.Names, SubjectName{URI: true, Value: string(n.URI)})
		default:
			p.fault("spec.validation.subjectAltNames[%d].type: %q is not supported", i, n.Type)
			continue
		}
		if p.Names[len(p.Names)-1].Value == "" {
			p.fault("spec.validation.subjectAltNames[%d]: a name is required", i)
		}
	}
}

// ancestorsOf reads the entries of status.ancestors that are the mesh's own, as parentsOf does those of routes.
func ancestorsOf(in *unstructured.Unstructured) []ParentStatus {
	status, _ := in.Object["status"].(map[string]any)
	var read gatewayv1.PolicyStatus
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(status, &read); err != nil {
		return nil
	}
	var out []ParentStatus
	for _, a := range read.Ancestors {
		if a.ControllerName == api.ControllerWaypoint {
			out = append(out, ParentStatus{Ref: a.AncestorRef, Conditions: conditionsOf(a.Conditions)})
		}
	}
	return out
}

// BundleKey is where a config map has whom to trust, as PEM: the Gateway API's.
const BundleKey = "ca.crt"

// Bundle is what a config map says of whom to trust.
type Bundle struct {
	Key
	// Certificates are all certificates that could be read, as PEM; zero if there are none. Many namespaces have the same.
	Certificates unique.Handle[string]
}

// ObjectKind is KindBundle.
func (*Bundle) ObjectKind() Kind { return KindBundle }

// ObjectKey is namespace and name.
func (b *Bundle) ObjectKey() Key { return b.Key }

// Empty reports whether there is nobody to trust.
func (b *Bundle) Empty() bool { return b == nil || b.Certificates == unique.Handle[string]{} }

// BundleOf reduces a Kubernetes config map to whom it says to trust.
func BundleOf(in *corev1.ConfigMap) *Bundle {
	b := &Bundle{Key: Key{in.Namespace, in.Name}}
	var all strings.Builder
	for rest := []byte(in.Data[BundleKey]); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err == nil {
			_ = pem.Encode(&all, &pem.Block{Type: block.Type, Bytes: block.Bytes})
		}
	}
	if all.Len() > 0 {
		b.Certificates = unique.Make(all.String())
	}
	return b
}
