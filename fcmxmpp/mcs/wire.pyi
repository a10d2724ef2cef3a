# mypy: disable-error-code="type-arg,no-untyped-def"
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HeartbeatPing(_message.Message):
    __slots__ = ("stream_id", "last_stream_id_received", "status")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_STREAM_ID_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    stream_id: int
    last_stream_id_received: int
    status: int
    def __init__(self, stream_id: _Optional[int] = ..., last_stream_id_received: _Optional[int] = ..., status: _Optional[int] = ...) -> None: ...

class HeartbeatAck(_message.Message):
    __slots__ = ("stream_id", "last_stream_id_received", "status")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_STREAM_ID_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    stream_id: int
    last_stream_id_received: int
    status: int
    def __init__(self, stream_id: _Optional[int] = ..., last_stream_id_received: _Optional[int] = ..., status: _Optional[int] = ...) -> None: ...

class ErrorInfo(_message.Message):
    __slots__ = ("code", "message", "type", "extension")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    EXTENSION_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    type: str
    extension: Extension
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., type: _Optional[str] = ..., extension: _Optional[_Union[Extension, _Mapping]] = ...) -> None: ...

class Setting(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class HeartbeatStat(_message.Message):
    __slots__ = ("ip", "timeout", "interval_ms")
    IP_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    ip: str
    timeout: bool
    interval_ms: int
    def __init__(self, ip: _Optional[str] = ..., timeout: _Optional[bool] = ..., interval_ms: _Optional[int] = ...) -> None: ...

class HeartbeatConfig(_message.Message):
    __slots__ = ("upload_stat", "ip", "interval_ms")
    UPLOAD_STAT_FIELD_NUMBER: _ClassVar[int]
    IP_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    upload_stat: bool
    ip: str
    interval_ms: int
    def __init__(self, upload_stat: _Optional[bool] = ..., ip: _Optional[str] = ..., interval_ms: _Optional[int] = ...) -> None: ...

class ClientEvent(_message.Message):
    __slots__ = ("type", "number_discarded_events", "network_type", "time_connection_started_ms", "time_connection_ended_ms", "error_code", "time_connection_established_ms")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[ClientEvent.Type]
        DISCARDED_EVENTS: _ClassVar[ClientEvent.Type]
        FAILED_CONNECTION: _ClassVar[ClientEvent.Type]
        SUCCESSFUL_CONNECTION: _ClassVar[ClientEvent.Type]
    UNKNOWN: ClientEvent.Type
    DISCARDED_EVENTS: ClientEvent.Type
    FAILED_CONNECTION: ClientEvent.Type
    SUCCESSFUL_CONNECTION: ClientEvent.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_DISCARDED_EVENTS_FIELD_NUMBER: _ClassVar[int]
    NETWORK_TYPE_FIELD_NUMBER: _ClassVar[int]
    TIME_CONNECTION_STARTED_MS_FIELD_NUMBER: _ClassVar[int]
    TIME_CONNECTION_ENDED_MS_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    TIME_CONNECTION_ESTABLISHED_MS_FIELD_NUMBER: _ClassVar[int]
    type: ClientEvent.Type
    number_discarded_events: int
    network_type: int
    time_connection_started_ms: int
    time_connection_ended_ms: int
    error_code: int
    time_connection_established_ms: int
    def __init__(self, type: _Optional[_Union[ClientEvent.Type, str]] = ..., number_discarded_events: _Optional[int] = ..., network_type: _Optional[int] = ..., time_connection_started_ms: _Optional[int] = ..., time_connection_ended_ms: _Optional[int] = ..., error_code: _Optional[int] = ..., time_connection_established_ms: _Optional[int] = ...) -> None: ...

class LoginRequest(_message.Message):
    __slots__ = ("id", "domain", "user", "resource", "auth_token", "device_id", "last_rmq_id", "setting", "received_persistent_id", "include_stream_ids", "adaptive_heartbeat", "heartbeat_stat", "use_rmq2", "account_id", "auth_service", "network_type", "status", "token_version_info", "gcm_start_time_ms", "client_event", "on_fallback", "no_pending_upstream", "reconnect_request_id")
    class AuthService(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MAIL: _ClassVar[LoginRequest.AuthService]
        ANDROID_MARKET: _ClassVar[LoginRequest.AuthService]
        ANDROID_ID: _ClassVar[LoginRequest.AuthService]
    MAIL: LoginRequest.AuthService
    ANDROID_MARKET: LoginRequest.AuthService
    ANDROID_ID: LoginRequest.AuthService
    ID_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    AUTH_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_RMQ_ID_FIELD_NUMBER: _ClassVar[int]
    SETTING_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_PERSISTENT_ID_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_STREAM_IDS_FIELD_NUMBER: _ClassVar[int]
    ADAPTIVE_HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_STAT_FIELD_NUMBER: _ClassVar[int]
    USE_RMQ2_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    AUTH_SERVICE_FIELD_NUMBER: _ClassVar[int]
    NETWORK_TYPE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_VERSION_INFO_FIELD_NUMBER: _ClassVar[int]
    GCM_START_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_EVENT_FIELD_NUMBER: _ClassVar[int]
    ON_FALLBACK_FIELD_NUMBER: _ClassVar[int]
    NO_PENDING_UPSTREAM_FIELD_NUMBER: _ClassVar[int]
    RECONNECT_REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    domain: str
    user: str
    resource: str
    auth_token: str
    device_id: str
    last_rmq_id: int
    setting: _containers.RepeatedCompositeFieldContainer[Setting]
    received_persistent_id: _containers.RepeatedScalarFieldContainer[str]
    include_stream_ids: bool
    adaptive_heartbeat: bool
    heartbeat_stat: HeartbeatStat
    use_rmq2: bool
    account_id: int
    auth_service: LoginRequest.AuthService
    network_type: int
    status: int
    token_version_info: str
    gcm_start_time_ms: int
    client_event: _containers.RepeatedCompositeFieldContainer[ClientEvent]
    on_fallback: bool
    no_pending_upstream: bool
    reconnect_request_id: int
    def __init__(self, id: _Optional[str] = ..., domain: _Optional[str] = ..., user: _Optional[str] = ..., resource: _Optional[str] = ..., auth_token: _Optional[str] = ..., device_id: _Optional[str] = ..., last_rmq_id: _Optional[int] = ..., setting: _Optional[_Iterable[_Union[Setting, _Mapping]]] = ..., received_persistent_id: _Optional[_Iterable[str]] = ..., include_stream_ids: _Optional[bool] = ..., adaptive_heartbeat: _Optional[bool] = ..., heartbeat_stat: _Optional[_Union[HeartbeatStat, _Mapping]] = ..., use_rmq2: _Optional[bool] = ..., account_id: _Optional[int] = ..., auth_service: _Optional[_Union[LoginRequest.AuthService, str]] = ..., network_type: _Optional[int] = ..., status: _Optional[int] = ..., token_version_info: _Optional[str] = ..., gcm_start_time_ms: _Optional[int] = ..., client_event: _Optional[_Iterable[_Union[ClientEvent, _Mapping]]] = ..., on_fallback: _Optional[bool] = ..., no_pending_upstream: _Optional[bool] = ..., reconnect_request_id: _Optional[int] = ...) -> None: ...

class LoginResponse(_message.Message):
    __slots__ = ("id", "jid", "error", "setting", "stream_id", "last_stream_id_received", "heartbeat_config", "server_timestamp")
    ID_FIELD_NUMBER: _ClassVar[int]
    JID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SETTING_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_STREAM_ID_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_CONFIG_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    id: str
    jid: str
    error: ErrorInfo
    setting: _containers.RepeatedCompositeFieldContainer[Setting]
    stream_id: int
    last_stream_id_received: int
    heartbeat_config: HeartbeatConfig
    server_timestamp: int
    def __init__(self, id: _Optional[str] = ..., jid: _Optional[str] = ..., error: _Optional[_Union[ErrorInfo, _Mapping]] = ..., setting: _Optional[_Iterable[_Union[Setting, _Mapping]]] = ..., stream_id: _Optional[int] = ..., last_stream_id_received: _Optional[int] = ..., heartbeat_config: _Optional[_Union[HeartbeatConfig, _Mapping]] = ..., server_timestamp: _Optional[int] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Extension(_message.Message):
    __slots__ = ("id", "data")
    ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    id: int
    data: bytes
    def __init__(self, id: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class SelectiveAck(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[_Iterable[str]] = ...) -> None: ...

class StreamAck(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class IqStanza(_message.Message):
    __slots__ = ("rmq_id", "type", "id", "to", "error", "extension", "persistent_id", "stream_id", "last_stream_id_received", "account_id", "status")
    class IqType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        GET: _ClassVar[IqStanza.IqType]
        SET: _ClassVar[IqStanza.IqType]
        RESULT: _ClassVar[IqStanza.IqType]
        IQ_ERROR: _ClassVar[IqStanza.IqType]
    GET: IqStanza.IqType
    SET: IqStanza.IqType
    RESULT: IqStanza.IqType
    IQ_ERROR: IqStanza.IqType
    RMQ_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    EXTENSION_FIELD_NUMBER: _ClassVar[int]
    PERSISTENT_ID_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_STREAM_ID_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    rmq_id: int
    type: IqStanza.IqType
    id: str
    to: str
    error: ErrorInfo
    extension: Extension
    persistent_id: str
    stream_id: int
    last_stream_id_received: int
    account_id: int
    status: int
    def __init__(self, rmq_id: _Optional[int] = ..., type: _Optional[_Union[IqStanza.IqType, str]] = ..., id: _Optional[str] = ..., to: _Optional[str] = ..., error: _Optional[_Union[ErrorInfo, _Mapping]] = ..., extension: _Optional[_Union[Extension, _Mapping]] = ..., persistent_id: _Optional[str] = ..., stream_id: _Optional[int] = ..., last_stream_id_received: _Optional[int] = ..., account_id: _Optional[int] = ..., status: _Optional[int] = ..., **kwargs) -> None: ...

class AppData(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: str
    def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class DataMessageStanza(_message.Message):
    __slots__ = ("rmq_id", "id", "to", "category", "token", "app_data", "from_trusted_server", "persistent_id", "stream_id", "last_stream_id_received", "permission", "reg_id", "pkg_signature", "client_id", "device_user_id", "ttl", "sent", "queued", "status", "raw_data", "max_delay", "actual_delay", "immediate_ack", "delivery_receipt_requested", "external_message_id", "flags", "priority")
    RMQ_ID_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    APP_DATA_FIELD_NUMBER: _ClassVar[int]
    FROM_TRUSTED_SERVER_FIELD_NUMBER: _ClassVar[int]
    PERSISTENT_ID_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_STREAM_ID_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    PERMISSION_FIELD_NUMBER: _ClassVar[int]
    REG_ID_FIELD_NUMBER: _ClassVar[int]
    PKG_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_USER_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RAW_DATA_FIELD_NUMBER: _ClassVar[int]
    MAX_DELAY_FIELD_NUMBER: _ClassVar[int]
    ACTUAL_DELAY_FIELD_NUMBER: _ClassVar[int]
    IMMEDIATE_ACK_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_RECEIPT_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    rmq_id: int
    id: str
    to: str
    category: str
    token: str
    app_data: _containers.RepeatedCompositeFieldContainer[AppData]
    from_trusted_server: bool
    persistent_id: str
    stream_id: int
    last_stream_id_received: int
    permission: str
    reg_id: str
    pkg_signature: str
    client_id: str
    device_user_id: int
    ttl: int
    sent: int
    queued: int
    status: int
    raw_data: bytes
    max_delay: int
    actual_delay: int
    immediate_ack: bool
    delivery_receipt_requested: bool
    external_message_id: str
    flags: int
    priority: int
    def __init__(self, rmq_id: _Optional[int] = ..., id: _Optional[str] = ..., to: _Optional[str] = ..., category: _Optional[str] = ..., token: _Optional[str] = ..., app_data: _Optional[_Iterable[_Union[AppData, _Mapping]]] = ..., from_trusted_server: _Optional[bool] = ..., persistent_id: _Optional[str] = ..., stream_id: _Optional[int] = ..., last_stream_id_received: _Optional[int] = ..., permission: _Optional[str] = ..., reg_id: _Optional[str] = ..., pkg_signature: _Optional[str] = ..., client_id: _Optional[str] = ..., device_user_id: _Optional[int] = ..., ttl: _Optional[int] = ..., sent: _Optional[int] = ..., queued: _Optional[int] = ..., status: _Optional[int] = ..., raw_data: _Optional[bytes] = ..., max_delay: _Optional[int] = ..., actual_delay: _Optional[int] = ..., immediate_ack: _Optional[bool] = ..., delivery_receipt_requested: _Optional[bool] = ..., external_message_id: _Optional[str] = ..., flags: _Optional[int] = ..., priority: _Optional[int] = ..., **kwargs) -> None: ...

class StreamErrorStanza(_message.Message):
    __slots__ = ("type", "text")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    type: str
    text: str
    def __init__(self, type: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class ChromeBuild(_message.Message):
    __slots__ = ("platform", "chrome_version", "channel")
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    CHROME_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    platform: int
    chrome_version: str
    channel: int
    def __init__(self, platform: _Optional[int] = ..., chrome_version: _Optional[str] = ..., channel: _Optional[int] = ...) -> None: ...

class Checkin(_message.Message):
    __slots__ = ("last_checkin_msec", "cell_operator", "sim_operator", "roaming", "user_number", "type", "chrome_build")
    class DeviceType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ANDROID_OS: _ClassVar[Checkin.DeviceType]
        IOS_OS: _ClassVar[Checkin.DeviceType]
        CHROME_BROWSER: _ClassVar[Checkin.DeviceType]
        CHROME_OS: _ClassVar[Checkin.DeviceType]
    ANDROID_OS: Checkin.DeviceType
    IOS_OS: Checkin.DeviceType
    CHROME_BROWSER: Checkin.DeviceType
    CHROME_OS: Checkin.DeviceType
    LAST_CHECKIN_MSEC_FIELD_NUMBER: _ClassVar[int]
    CELL_OPERATOR_FIELD_NUMBER: _ClassVar[int]
    SIM_OPERATOR_FIELD_NUMBER: _ClassVar[int]
    ROAMING_FIELD_NUMBER: _ClassVar[int]
    USER_NUMBER_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    CHROME_BUILD_FIELD_NUMBER: _ClassVar[int]
    last_checkin_msec: int
    cell_operator: str
    sim_operator: str
    roaming: str
    user_number: int
    type: Checkin.DeviceType
    chrome_build: ChromeBuild
    def __init__(self, last_checkin_msec: _Optional[int] = ..., cell_operator: _Optional[str] = ..., sim_operator: _Optional[str] = ..., roaming: _Optional[str] = ..., user_number: _Optional[int] = ..., type: _Optional[_Union[Checkin.DeviceType, str]] = ..., chrome_build: _Optional[_Union[ChromeBuild, _Mapping]] = ...) -> None: ...

class CheckinRequest(_message.Message):
    __slots__ = ("id", "digest", "checkin", "desired_build", "locale", "logging_id", "market_checkin", "mac_addr", "account_cookie", "time_zone", "security_token", "version", "ota_cert", "mac_addr_type", "fragment", "user_serial_number")
    ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHECKIN_FIELD_NUMBER: _ClassVar[int]
    DESIRED_BUILD_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    LOGGING_ID_FIELD_NUMBER: _ClassVar[int]
    MARKET_CHECKIN_FIELD_NUMBER: _ClassVar[int]
    MAC_ADDR_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_COOKIE_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    SECURITY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OTA_CERT_FIELD_NUMBER: _ClassVar[int]
    MAC_ADDR_TYPE_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    USER_SERIAL_NUMBER_FIELD_NUMBER: _ClassVar[int]
    id: int
    digest: str
    checkin: Checkin
    desired_build: str
    locale: str
    logging_id: int
    market_checkin: str
    mac_addr: _containers.RepeatedScalarFieldContainer[str]
    account_cookie: _containers.RepeatedScalarFieldContainer[str]
    time_zone: str
    security_token: int
    version: int
    ota_cert: _containers.RepeatedScalarFieldContainer[str]
    mac_addr_type: _containers.RepeatedScalarFieldContainer[str]
    fragment: int
    user_serial_number: int
    def __init__(self, id: _Optional[int] = ..., digest: _Optional[str] = ..., checkin: _Optional[_Union[Checkin, _Mapping]] = ..., desired_build: _Optional[str] = ..., locale: _Optional[str] = ..., logging_id: _Optional[int] = ..., market_checkin: _Optional[str] = ..., mac_addr: _Optional[_Iterable[str]] = ..., account_cookie: _Optional[_Iterable[str]] = ..., time_zone: _Optional[str] = ..., security_token: _Optional[int] = ..., version: _Optional[int] = ..., ota_cert: _Optional[_Iterable[str]] = ..., mac_addr_type: _Optional[_Iterable[str]] = ..., fragment: _Optional[int] = ..., user_serial_number: _Optional[int] = ...) -> None: ...

class CheckinSetting(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    value: bytes
    def __init__(self, name: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class CheckinResponse(_message.Message):
    __slots__ = ("stats_ok", "time_msec", "digest", "setting", "market_ok", "android_id", "security_token", "settings_diff", "delete_setting", "version_info", "device_data_version_info")
    STATS_OK_FIELD_NUMBER: _ClassVar[int]
    TIME_MSEC_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SETTING_FIELD_NUMBER: _ClassVar[int]
    MARKET_OK_FIELD_NUMBER: _ClassVar[int]
    ANDROID_ID_FIELD_NUMBER: _ClassVar[int]
    SECURITY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_DIFF_FIELD_NUMBER: _ClassVar[int]
    DELETE_SETTING_FIELD_NUMBER: _ClassVar[int]
    VERSION_INFO_FIELD_NUMBER: _ClassVar[int]
    DEVICE_DATA_VERSION_INFO_FIELD_NUMBER: _ClassVar[int]
    stats_ok: bool
    time_msec: int
    digest: str
    setting: _containers.RepeatedCompositeFieldContainer[CheckinSetting]
    market_ok: bool
    android_id: int
    security_token: int
    settings_diff: bool
    delete_setting: _containers.RepeatedScalarFieldContainer[str]
    version_info: str
    device_data_version_info: str
    def __init__(self, stats_ok: _Optional[bool] = ..., time_msec: _Optional[int] = ..., digest: _Optional[str] = ..., setting: _Optional[_Iterable[_Union[CheckinSetting, _Mapping]]] = ..., market_ok: _Optional[bool] = ..., android_id: _Optional[int] = ..., security_token: _Optional[int] = ..., settings_diff: _Optional[bool] = ..., delete_setting: _Optional[_Iterable[str]] = ..., version_info: _Optional[str] = ..., device_data_version_info: _Optional[str] = ...) -> None: ...
