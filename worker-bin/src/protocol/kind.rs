//! The kinds of messages: the numbers of PROTOCOL.md.

#![forbid(unsafe_code)]

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Hello = 1,
    Setup = 2,
    Call = 3,
    Retire = 4,
    Reply = 5,
    Settings = 6,
    Template = 7,
    Fork = 8,
    Credit = 9,
    Welcome = 16,
    Refused = 17,
    Ready = 18,
    SetupFailed = 19,
    Result = 20,
    Raised = 21,
    Retired = 22,
    Aborted = 23,
    Request = 24,
    Report = 25,
    Post = 26,
    Withdraw = 27,
}

impl Kind {
    pub(super) fn is_of_worker(self) -> bool {
        self as u8 >= Self::Welcome as u8
    }

    pub(super) fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Setup,
            3 => Self::Call,
            4 => Self::Retire,
            5 => Self::Reply,
            6 => Self::Settings,
            7 => Self::Template,
            8 => Self::Fork,
            9 => Self::Credit,
            16 => Self::Welcome,
            17 => Self::Refused,
            18 => Self::Ready,
            19 => Self::SetupFailed,
            20 => Self::Result,
            21 => Self::Raised,
            22 => Self::Retired,
            23 => Self::Aborted,
            24 => Self::Request,
            25 => Self::Report,
            26 => Self::Post,
            27 => Self::Withdraw,
            _ => return None,
        })
    }
}
