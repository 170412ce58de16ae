package api

// Names of what an installation makes in the cluster, and of files on nodes. Istio ambient's, wherever a peer's part or
// client would look for them.
const (
	// DefaultNamespace is where the mesh is installed, and the root namespace of mesh-wide policy.
	DefaultNamespace = "istio-system"
	// DefaultTrustDomain is SPIFFE's trust domain where mesh settings name none.
	DefaultTrustDomain = "cluster.local"
	// DefaultClusterDomain is Kubernetes' DNS domain.
	DefaultClusterDomain = "cluster.local"
	// DefaultClusterID is the name of the only cluster of a mesh.
	DefaultClusterID = "Kubernetes"

	// ControlPlaneService is the Service before the control plane; its Deployment is ControlPlaneDeployment.
	ControlPlaneService    = "istiod"
	ControlPlaneDeployment = "istiod-lite"
	// NodeProxy is the name of the node proxy's DaemonSet and service account.
	NodeProxy = "ztunnel"
	// NodeAgent is the name of the CNI agent's DaemonSet and service account.
	NodeAgent = "ambit-cni"

	// MeshConfigMap holds mesh settings under MeshConfigKey, in the form of Istio's MeshConfig.
	MeshConfigMap = "istio"
	MeshConfigKey = "mesh"
	// RootCertConfigMap, in every namespace, holds the trust bundle under RootCertKey.
	RootCertConfigMap = "istio-ca-root-cert"
	RootCertKey       = "root-cert.pem"
	// CASecret holds the self-signed root; PluggedCASecret, if present, a root or intermediate that the user brings.
	CASecret        = "istio-ca-secret"
	PluggedCASecret = "cacerts"
	// CARotationSecret leads from one signing key to the next; the leader of the control plane writes it.
	CARotationSecret = "ambit-ca-rotation"
	// CASignerSecret is what signs, as a control plane that starts is to find it; the leader of the control plane writes it.
	CASignerSecret = "ambit-ca-signer"
	// AnnotationRotateRoot on CASecret, with any value, has the self-signed root replaced.
	AnnotationRotateRoot = "ambit.io/rotate-root"
	// CRLConfigMap, in every namespace, holds the revocation lists of a plugged-in CA under CRLKey.
	CRLConfigMap = "istio-ca-crl"
	CRLKey       = "ca-crl.pem"

	// ClassWaypoint is the GatewayClass of waypoints and ControllerWaypoint its controller, which is also that of routes whose
	// parents are services. ClassIngress and ControllerIngress are those of Istio's ingress gateways.
	ClassWaypoint      = "istio-waypoint"
	ControllerWaypoint = "istio.io/mesh-controller"
	ClassIngress       = "istio"
	ControllerIngress  = "istio.io/gateway-controller"
	// GatewayDeployer is the field manager of what the control plane makes for a waypoint.
	GatewayDeployer = "ambit-gateway-deployer"
	// MeshName is the XMesh of the mesh, and ControllerMesh its controller.
	MeshName       = "ambit"
	ControllerMesh = "ambit.io/mesh-controller"

	// TokenAudience is the audience of service account tokens for the control plane.
	TokenAudience = "istio-ca"
)

// Paths on a node, and in the containers that mount them.
const (
	// ZDSSocket is where the CNI agent listens for node proxies (SOCK_SEQPACKET).
	ZDSSocket = "/var/run/ztunnel/ztunnel.sock"
	// HandoverSuffix and DepotSuffix, behind the path of the ZDS socket, make those of the sockets on which a node proxy lends
	// its listeners to its successor, and on which the CNI agent keeps them for a proxy that died (see mesh/handover).
	HandoverSuffix = ".handover"
	DepotSuffix    = ".depot"
	// KeyDir is the folder beside the ZDS socket in which node proxies keep certificates and keys, in memory.
	KeyDir = "keys"
	// StateFile is the file in which a node proxy saves its configuration, in a folder that whoever installs chooses, and
	// StatePrefix how the names of others begin that it writes there.
	StateFile   = "config"
	StatePrefix = "config-"
	// AgentRunDir holds the agent's AgentSocket, the plugin's kubeconfig and its log.
	AgentRunDir = "/var/run/istio-cni"
	// AgentSocket is where the CNI plugin asks the agent (HTTP over a Unix socket).
	AgentSocket = "pluginevent.sock"
	// PluginName is the plugin's file name and its "type" in a CNI configuration.
	PluginName = "ambit-cni"
)
